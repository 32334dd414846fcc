"""Every kernel beside its reference, in one table that drives the tests and the benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from virchow_st.kernels import moments, pooling, reference, ssim
from virchow_st.types import PATCH_BINS, Array, BoolArray, Float32Array


@dataclass(frozen=True)
class Pair:
    """A kernel and the plain function that it must equal.

    Attributes:
        name: what tests and benchmark call the pair.
        kernel: the fast one.
        reference: the plain one, same arguments and results.
        make_inputs: draws arguments for both.
        tolerance: largest relative difference (absolute below 1) of any number they return;
            0 asks for equality.
    """

    name: str
    kernel: Callable[..., Any]
    reference: Callable[..., Any]
    make_inputs: Callable[[np.random.Generator], tuple[Any, ...]]
    tolerance: float


def draw_patch(
    rng: np.random.Generator, n_genes: int = 50
) -> tuple[Float32Array, Array, BoolArray]:
    """A patch as sparse as a real one: rates, Poisson counts (95 % zeros), a tissue mask.

    Returns:
        rate (G, 128, 128) float32, UMIs per 2 µm bin; counts, same shape, uint16; tissue_mask
        (128, 128) bool with an edge and a few holes.
    """
    side = PATCH_BINS
    shape = (n_genes, side, side)
    rate = rng.gamma(0.5, 0.1, shape).astype(np.float32)
    row, col = np.mgrid[:side, :side]
    tissue_mask = row + 0.3 * col < side * rng.uniform(0.8, 1.4)
    tissue_mask[tuple(rng.integers(0, side, (2, 5)))] = False
    return rate, rng.poisson(rate).astype(np.uint16), tissue_mask


def _pool_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    return draw_patch(rng)[1], 4


def _mask_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    return draw_patch(rng)[2], 4


def _map_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    rate, counts, tissue_mask = draw_patch(rng)
    return rate.astype(np.float64), counts.astype(np.float64), tissue_mask


def _one_map_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    rate, counts, tissue_mask = _map_inputs(rng)
    return rate[0], counts[0], tissue_mask


def _flat_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    rate, counts, tissue_mask = _map_inputs(rng)
    G = len(rate)
    return rate.reshape(G, -1), counts.reshape(G, -1), tissue_mask.ravel()


def _poisson_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    return *_flat_inputs(rng), 1e-3


TABLE: tuple[Pair, ...] = (
    Pair("sum_pool", pooling.sum_pool, reference.sum_pool, _pool_inputs, 0.0),
    Pair("pool_mask", pooling.pool_mask, reference.pool_mask, _mask_inputs, 0.0),
    Pair("masked_moments", moments.masked_moments, reference.masked_moments, _flat_inputs, 1e-12),
    Pair(
        "masked_poisson_sums",
        moments.masked_poisson_sums,
        reference.masked_poisson_sums,
        _poisson_inputs,
        1e-12,
    ),
    Pair("masked_ssim", ssim.masked_ssim, reference.masked_ssim, _one_map_inputs, 1e-9),
    Pair(
        "masked_ssim_stack",
        ssim.masked_ssim_stack,
        reference.masked_ssim_stack,
        _map_inputs,
        1e-9,
    ),
)

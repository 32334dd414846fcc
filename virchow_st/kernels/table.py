"""Table that pairs every kernel with its reference; the tests and the benchmark run from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from virchow_st.kernels import (
    alike,
    alike_cases,
    alike_reference,
    factor_cases,
    factor_loss_cases,
    factor_moments,
    factor_moments_reference,
    factorise,
    factorise_reference,
    factors,
    factors_reference,
    joint,
    moments,
    neighbours,
    outline_cases,
    outlines,
    outlines_reference,
    panel,
    panel_reference,
    poisson,
    poisson_reference,
    pooling,
    record_cases,
    reference,
    ssim,
    thinning,
    tokens,
)
from virchow_st.kernels.levels import level_starts
from virchow_st.types import (
    PATCH_BINS,
    SCALES_UM,
    Array,
    BoolArray,
    Float32Array,
)


@dataclass(frozen=True)
class Pair:
    """A kernel and the plain function whose results it must reproduce.

    Attributes:
        name: Name of the pair in tests and benchmark.
        kernel: The compiled function.
        reference: The plain function, with the same arguments and results.
        make_inputs: Draws arguments for both from a random generator.
        tolerance: Largest relative difference (absolute below 1) between the results; 0 requires
            equality.
    """

    name: str
    kernel: Callable[..., Any]
    reference: Callable[..., Any]
    make_inputs: Callable[[np.random.Generator], tuple[Any, ...]]
    tolerance: float


def draw_patch(
    rng: np.random.Generator, n_genes: int = 50
) -> tuple[Float32Array, Array, BoolArray]:
    """Draw a patch as sparse as a real one: rates, Poisson counts (95 % zeros), a tissue mask.

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


def _counts_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    return draw_patch(rng)[1:]


def _one_map_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    rate, counts, tissue_mask = _map_inputs(rng)
    return rate[0], counts[0], tissue_mask


def _flat_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    rate, counts, tissue_mask = _map_inputs(rng)
    G = len(rate)
    return rate.reshape(G, -1), counts.reshape(G, -1), tissue_mask.ravel()


def _control_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    rate, counts, tissue_mask = _flat_inputs(rng)
    return rate, counts[:6].astype(np.float64), tissue_mask


def _several_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    rate, counts, tissue_mask = draw_patch(rng, 10)
    return (rate, rate[::-1].copy(), rate[:, ::-1].copy()), counts, tissue_mask


def _thinning_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    """Counts as sparse as at 2 µm, except for one gene with up to hundreds of UMIs per bin."""
    _, counts, tissue_mask = draw_patch(rng)
    counts[0] = rng.negative_binomial(1, 0.01, counts[0].shape)
    return counts.reshape(len(counts), -1), tissue_mask.ravel()


def _whole_count_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    counts, mask = _thinning_inputs(rng)
    rate = rng.gamma(0.5, 0.1, counts.shape) * np.exp(rng.normal(0, 5, (len(counts), 1)))
    rate[1], rate[2], rate[3] = -rate[1], 0.0, rng.normal(0, 1, rate[3].shape)
    return rate.astype(np.float32), counts, mask


def _joint_cells(x: Array, y: Array, mask: BoolArray) -> tuple[Array, ...]:
    """Gene, key, class and number of bins of all cells of a joint histogram, (4, n), sorted."""
    pairs = joint.JointHistogram(len(x))
    pairs.update(x, y, mask)
    cells = [np.vstack([np.full_like(c[0], g), *c]) for g in range(len(x)) if (c := pairs.cells(g))]
    joined = np.hstack(cells)
    return (joined[:, np.lexsort(joined[2::-1])],)


def _poisson_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    return *_flat_inputs(rng), 1e-3


def _deviance_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    """Log-rates of two patches and their sparse counts, as the fused Poisson loss passes them."""
    log_rate, mask, start, position, count = [], [], [0], [], []
    for _ in range(2):
        rate, counts, tissue_mask = draw_patch(rng, n_genes=25)
        log_rate.append(np.log(rate.clip(1e-9)))
        mask.append(tissue_mask)
        for umis in counts.reshape(len(counts), -1):
            position.append(np.flatnonzero(umis).astype(np.uint16))
            count.append(umis[position[-1]].astype(np.float32))
            start.append(start[-1] + len(position[-1]))
    lists = np.array(start), np.concatenate(position), np.concatenate(count)
    return np.concatenate(log_rate), np.stack(mask), *lists


def _half_deviances(kernel: Callable[..., None]) -> Callable[..., tuple[Array, Array]]:
    def of_all(log_rate: Array, *inputs: Array) -> tuple[Array, Array]:
        M, R, C = log_rate.shape
        out = np.full((M, len(SCALES_UM)), np.nan)
        n_coarse = level_starts(R, C, len(SCALES_UM))[-1] - R * C
        quotients = np.full((M, n_coarse), np.nan, log_rate.dtype)
        kernel(log_rate, *inputs, 0, M, out, quotients)
        return out, quotients

    return of_all


def _gradient_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    inputs = _deviance_inputs(rng)
    return *inputs, _half_deviances(poisson_reference.half_deviances)(*inputs)[1]


def _half_deviance_gradient(kernel: Callable[..., None]) -> Callable[..., Array]:
    def of_all(log_rate: Array, *inputs: Array) -> Array:
        out, weights = np.full_like(log_rate, np.nan), np.array([0.5, 1, 1.5, 1], np.float32)
        kernel(log_rate, *inputs, weights, 0, len(log_rate), out)
        return out

    return of_all


def _token_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    """int8 tokens of a patch shaped like Virchow2's, 16 × 16 × 1280, some channels nearly zero."""
    codes = rng.integers(-127, 128, (16, 16, 1280)).astype(np.int8)
    return codes, rng.lognormal(-6.0, 3.0, 1280).astype(np.float32).clip(0, 500)


TABLE: tuple[Pair, ...] = (
    Pair("dequantise", tokens.dequantise, reference.dequantise, _token_inputs, 0.0),
    Pair("sum_pool", pooling.sum_pool, reference.sum_pool, _pool_inputs, 0.0),
    Pair("pool_mask", pooling.pool_mask, reference.pool_mask, _mask_inputs, 0.0),
    Pair("masked_moments", moments.masked_moments, reference.masked_moments, _flat_inputs, 1e-12),
    Pair(
        "masked_products",
        moments.masked_products,
        reference.masked_products,
        _control_inputs,
        1e-12,
    ),
    Pair(
        "masked_poisson_sums",
        moments.masked_poisson_sums,
        reference.masked_poisson_sums,
        _poisson_inputs,
        1e-12,
    ),
    Pair("masked_ssim", ssim.masked_ssim, reference.masked_ssim, _one_map_inputs, 1e-9),
    Pair("masked_ssims", ssim.masked_ssims, reference.masked_ssims, _several_inputs, 1e-9),
    Pair("zero_ssims", ssim.zero_ssims, reference.zero_ssims, _counts_inputs, 1e-9),
    Pair(
        "neighbour_sums",
        neighbours.neighbour_sums,
        reference.neighbour_sums,
        _map_inputs,
        1e-12,
    ),
    Pair("joint_cells", _joint_cells, reference.joint_cells, _whole_count_inputs, 0.0),
    Pair(
        "thinned_moments",
        thinning.thinned_moments,
        reference.thinned_moments,
        _thinning_inputs,
        0.0,
    ),
    Pair("find_fault", panel.find_fault, panel_reference.find_fault, record_cases.fault, 0.0),
    Pair(
        "find_fault, uint32",
        panel.find_fault,
        panel_reference.find_fault,
        record_cases.wide_fault,
        0.0,
    ),
    Pair("find_panel", panel.find_panel, panel_reference.find_panel, record_cases.find, 0.0),
    Pair(
        "find_panel, uint32",
        panel.find_panel,
        panel_reference.find_panel,
        record_cases.wide_find,
        0.0,
    ),
    Pair(
        "fill_dense",
        record_cases.into_new(panel.fill_dense),
        record_cases.into_new(panel_reference.fill_dense),
        record_cases.gather,
        0.0,
    ),
    Pair(
        "gather_sparse",
        panel.gather_sparse,
        panel_reference.gather_sparse,
        record_cases.gather,
        0.0,
    ),
    Pair("pool_sparse", panel.pool_sparse, panel_reference.pool_sparse, record_cases.sparse, 0.0),
    Pair(
        "half_deviances",
        _half_deviances(poisson.half_deviances),
        _half_deviances(poisson_reference.half_deviances),
        _deviance_inputs,
        2e-6,
    ),
    Pair(
        "half_deviance_gradient",
        _half_deviance_gradient(poisson.half_deviance_gradient),
        _half_deviance_gradient(poisson_reference.half_deviance_gradient),
        _gradient_inputs,
        2e-6,
    ),
    Pair(
        "factor_levels",
        factor_loss_cases.levels_by(factors.factor_levels),
        factor_loss_cases.levels_by(factors_reference.factor_levels),
        factor_loss_cases.level_inputs,
        1e-6,
    ),
    Pair(
        "factor_half_deviances",
        factor_loss_cases.deviances_by(factors.factor_half_deviances),
        factor_loss_cases.deviances_by(factors_reference.factor_half_deviances),
        factor_loss_cases.deviance_inputs,
        5e-6,
    ),
    Pair(
        "log_factor_gradient",
        factor_loss_cases.log_factor_gradients_by(factors.log_factor_gradient),
        factor_loss_cases.log_factor_gradients_by(factors_reference.log_factor_gradient),
        factor_loss_cases.log_factor_inputs,
        2e-4,
    ),
    Pair(
        "loading_gradient",
        factor_loss_cases.loading_gradients_by(factors.loading_gradient),
        factor_loss_cases.loading_gradients_by(factors_reference.loading_gradient),
        factor_loss_cases.loading_inputs,
        5e-6,
    ),
    Pair(
        "expected_umis",
        factor_cases.expected_umis_by(factorise.expected_umis),
        factor_cases.expected_umis_by(factorise_reference.expected_umis),
        factor_cases.row_inputs,
        1e-12,
    ),
    Pair(
        "alike_means",
        alike_cases.means_by(alike.alike_means),
        alike_cases.means_by(alike_reference.alike_means),
        alike_cases.inputs,
        1e-5,
    ),
    Pair(
        "alike_means, by factor",
        alike_cases.means_by(alike.alike_means),
        alike_cases.means_by(alike_reference.alike_means),
        alike_cases.inputs_by_factor,
        1e-5,
    ),
    Pair(
        "alike_shares",
        alike_cases.shares_by(alike.alike_shares),
        alike_cases.shares_by(alike_reference.alike_shares),
        alike_cases.inputs_by_factor,
        1e-5,
    ),
    Pair(
        "factor_moments",
        factor_cases.factor_moments_by(factor_moments.factor_moments),
        factor_cases.factor_moments_by(factor_moments_reference.factor_moments),
        factor_cases.patch_inputs,
        1e-12,
    ),
    Pair(
        "paint_centres",
        outline_cases.paint_by(outlines.paint_centres),
        outline_cases.paint_by(outlines_reference.paint_centres),
        outline_cases.paint_inputs,
        0.0,
    ),
    Pair(
        "covered_shares",
        outline_cases.shares_by_kernel,
        outlines_reference.covered_shares,
        outline_cases.share_inputs,
        1e-9,
    ),
    Pair(
        "expand_labels",
        outlines.expand_labels,
        outlines_reference.expand_labels,
        outline_cases.expand_inputs,
        0.0,
    ),
    Pair(
        "add_shares",
        outline_cases.sums_by(outlines.add_shares),
        outline_cases.sums_by(outlines_reference.add_shares),
        outline_cases.sum_inputs,
        1e-6,
    ),
    Pair(
        "known_sums",
        outlines.known_sums,
        outlines_reference.known_sums,
        outline_cases.map_inputs,
        1e-12,
    ),
)

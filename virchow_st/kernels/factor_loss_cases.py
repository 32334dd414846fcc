"""Random batches of a rate field of factors, and how the table runs its kernels on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from virchow_st.kernels import factors_reference
from virchow_st.kernels.levels import level_starts
from virchow_st.types import (
    PATCH_BINS,
    SCALES_UM,
    Array,
    BoolArray,
    Float32Array,
    Float64Array,
    Int64Array,
)

_LEVELS = np.arange(len(SCALES_UM))
_WEIGHTS = np.array([0.5, 0, 1.5, 1], np.float32)  # of the levels in gradients
_BLOCK = 8  # factors are constant in squares of this many bins, times noise in each bin


@dataclass(frozen=True)
class FactorBatch:
    """Factors, loadings and counts of B patches.

    Attributes:
        log_factors: (B, K, R, C) float32, log h; UMIs per 2 µm bin.
        loadings: (G, K) float32, ≥ 0; each column sums to 1.
        mask: (B, R, C) bool, True = tissue.
        start: (B·G + 1,) int64 index of the first count of gene g in patch b at ``b * G + g``.
        position: (n,) uint16 ``row * C + col``, increasing within a gene.
        count: (n,) float32 UMIs, Poisson with rate ``Σ_k W_gk·h_k``, in tissue or not.
    """

    log_factors: Float32Array
    loadings: Float32Array
    mask: BoolArray
    start: Int64Array
    position: Array
    count: Float32Array


def draw_factor_batch(
    rng: np.random.Generator,
    n_patches: int,
    n_genes: int,
    n_factors: int,
    umi_per_bin: float = 9.0,
    side: int = PATCH_BINS,
) -> FactorBatch:
    """Draw patches with log-normal shares of genes; rates of genes × bins are never made.

    The number of UMIs of a factor in a patch is Poisson; each then gets a bin in proportion to the
    factor's map and a gene in proportion to its loadings.

    Args:
        rng: Random generator.
        n_patches, n_genes, n_factors: B, G, K.
        umi_per_bin: Mean UMIs per 2 µm bin, summed over genes.
        side: R = C, bins per side, a multiple of 8.
    """
    share = rng.lognormal(0.0, 2.0, (n_genes, 1)) * rng.lognormal(0.0, 1.0, (n_genes, n_factors))
    loadings = share / share.sum(0)
    blocks = rng.gamma(0.3, 1.0, (n_patches, n_factors, side // _BLOCK, side // _BLOCK)) + 0.01
    factors = np.kron(blocks, np.ones((_BLOCK, _BLOCK)))
    factors *= rng.gamma(2.0, 0.5, factors.shape) + 0.01
    factors *= umi_per_bin / factors.sum(1).mean()

    cells = []
    for patch in range(n_patches):
        for k in range(n_factors):
            h = factors[patch, k].ravel()
            n_umi = rng.poisson(h.sum())
            position = rng.choice(side * side, n_umi, p=h / h.sum())
            gene = rng.choice(n_genes, n_umi, p=loadings[:, k])
            cells.append((patch * n_genes + gene) * side * side + position)
    cell, count = np.unique(np.concatenate(cells), return_counts=True)
    maps, position = np.divmod(cell, side * side)
    row, col = np.mgrid[:side, :side]
    edge = side * rng.uniform(0.8, 1.4, (n_patches, 1, 1))
    return FactorBatch(
        log_factors=np.log(factors).astype(np.float32),
        loadings=loadings.astype(np.float32),
        mask=row + 0.3 * col < edge,
        start=np.searchsorted(maps, np.arange(n_patches * n_genes + 1)),
        position=position.astype(np.uint16),
        count=count.astype(np.float32),
    )


def level_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    """Log factors of two patches and their tissue masks."""
    batch = draw_factor_batch(rng, n_patches=2, n_genes=50, n_factors=16)
    return batch.log_factors, batch.mask


def deviance_inputs(rng: np.random.Generator, not_expected: bool = True) -> tuple[Any, ...]:
    """Factors of all levels, loadings of which some are 0, and counts.

    One patch's store did not measure one gene. With ``not_expected``, another gene has counts
    although all of its loadings are 0.
    """
    batch = draw_factor_batch(rng, n_patches=2, n_genes=50, n_factors=16)
    measured = np.ones((2, 50), np.bool_)
    measured[1, 7] = False
    zero = rng.random(batch.loadings.shape) < 0.1
    zero[3] = not_expected
    factors = levels_by(factors_reference.factor_levels)(batch.log_factors, batch.mask)
    loadings = np.where(zero, np.float32(0), batch.loadings)
    return factors, loadings, batch.mask, measured, batch.start, batch.position, batch.count


def log_factor_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    """Arguments of ``log_factor_gradient`` without the range; one scale has weight 0."""
    factors, loadings, _, measured, start, position, _ = inputs = deviance_inputs(rng, False)
    _, ratio = deviances_by(factors_reference.factor_half_deviances)(*inputs)
    sums = measured.astype(np.float32) @ loadings
    return factors, loadings, sums, start, position, ratio, _LEVELS, _WEIGHTS


def loading_inputs(rng: np.random.Generator) -> tuple[Any, ...]:
    """Arguments of ``loading_gradient`` without the range."""
    factors, _, mask, measured, start, position, _ = inputs = deviance_inputs(rng, False)
    _, ratio = deviances_by(factors_reference.factor_half_deviances)(*inputs)
    sums = factors[:, : PATCH_BINS**2].sum(1)
    weights = _WEIGHTS / 10_000  # gradients of about 1; they are sums over the bins of a patch
    shape = mask.shape[1:]
    return factors, sums, *shape, measured, start, position, ratio, _LEVELS, weights


def levels_by(kernel: Callable[..., None]) -> Callable[..., Array]:
    """Wrap ``factor_levels`` into a function that returns the levels of all patches."""

    def of_all(log_factors: Array, mask: BoolArray) -> Array:
        B, K, R, C = log_factors.shape
        n_levels = len(_LEVELS)
        out = np.full((B, level_starts(R, C, n_levels)[-1], K), np.nan, log_factors.dtype)
        kernel(log_factors, mask, n_levels, 0, B * (R >> (n_levels - 1)), out)
        return out

    return of_all


def deviances_by(kernel: Callable[..., None]) -> Callable[..., tuple[Float64Array, Array]]:
    """Wrap ``factor_half_deviances`` into a function that returns deviances and quotients."""

    def of_all(factors: Array, loadings: Array, *inputs: Array) -> tuple[Float64Array, Array]:
        start, _, count = inputs[-3:]
        out = np.full((len(start) - 1, len(_LEVELS)), np.nan)
        ratio = np.full((len(_LEVELS), len(count)), np.nan, factors.dtype)
        kernel(factors, loadings, *inputs, _LEVELS, 0, len(out), out, ratio)
        return out, ratio

    return of_all


def log_factor_gradients_by(kernel: Callable[..., None]) -> Callable[..., Array]:
    """Wrap ``log_factor_gradient`` into a function that returns the gradient of all patches."""

    def of_all(factors: Array, *inputs: Array) -> Array:
        B, _, K = factors.shape
        out = np.full((B, K, PATCH_BINS, PATCH_BINS), np.nan, factors.dtype)
        kernel(factors, *inputs, 0, B, out)
        return out

    return of_all


def loading_gradients_by(kernel: Callable[..., None]) -> Callable[..., Array]:
    """Wrap ``loading_gradient`` into a function that returns the gradient of all genes."""

    def of_all(factors: Array, *inputs: Any) -> Array:
        measured = inputs[3]
        out = np.full((measured.shape[1], factors.shape[2]), np.nan, factors.dtype)
        kernel(factors, *inputs, 0, len(out), out)
        return out

    return of_all

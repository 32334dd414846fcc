"""Plain NumPy reference for `virchow_st.kernels.factors`, in float64 and with dense rates."""

from __future__ import annotations

import numpy as np
from scipy.special import xlogy

from virchow_st.kernels.factors import MIN_RATE
from virchow_st.kernels.poisson import MAX_LOG_RATE, MIN_LOG_RATE
from virchow_st.types import Array, BoolArray, Float64Array, Int64Array


def factor_levels(
    log_factors: Array, mask: BoolArray, n_levels: int, first: int, last: int, out: Array
) -> None:
    """``exp`` of the clamped log factors in tissue, summed over the bins of each level."""
    n_strips = log_factors.shape[2] >> (n_levels - 1)
    for strip in range(first, last):
        patch, at = divmod(strip, n_strips)
        wide = log_factors[patch].astype(np.float64)
        h = np.exp(np.clip(wide, MIN_LOG_RATE, MAX_LOG_RATE)) * mask[patch]
        start = 0
        for level in range(n_levels):
            sums = _sums(h, level)
            _, n_rows, n_cols = sums.shape
            per_strip = n_rows // n_strips * n_cols
            own = np.s_[at * per_strip : (at + 1) * per_strip]
            out[patch, start : start + n_rows * n_cols][own] = sums.reshape(len(h), -1).T[own]
            start += n_rows * n_cols


def factor_half_deviances(
    factors: Array,
    loadings: Array,
    mask: BoolArray,
    measured: BoolArray,
    start: Int64Array,
    position: Array,
    count: Array,
    levels: Int64Array,
    first: int,
    last: int,
    out: Float64Array,
    ratio: Array,
) -> None:
    """``Σ Y·log(Y/Λ) - Y`` per map and level, and the quotient y/Λ of every count y at 2 µm."""
    G = len(loadings)
    for m in range(first, last):
        patch, gene = m // G, m % G
        own = slice(start[m], start[m + 1])
        where = np.divmod(position[own].astype(np.int64), mask.shape[2])
        used = mask[patch][where] & measured[patch, gene]
        umi = np.zeros(mask.shape[1:])
        umi[where] = count[own] * used
        for s, level in enumerate(levels):
            rate = _rate(factors[patch], loadings[gene], mask.shape[1:], level)
            sums = _sums(umi, level)
            out[m, s] = (xlogy(sums, sums) - xlogy(sums, rate) - sums).sum()
            ratio[s, own] = (umi / np.kron(rate, np.ones((2**level, 2**level))))[where]


def log_factor_gradient(
    factors: Array,
    loadings: Array,
    loading_sums: Array,
    start: Int64Array,
    position: Array,
    ratio: Array,
    levels: Int64Array,
    weights: Array,
    first: int,
    last: int,
    out: Array,
) -> None:
    """``h·Σ_s w_s·(Σ_g W_g - Σ_g W_g·Σ_e ratio_se)`` with dense sums of the quotients."""
    G, (_, K, R, C) = len(loadings), out.shape
    for patch in range(first, last):
        gradient = np.zeros((K, R, C))
        for s, level in enumerate(levels):
            dense = _dense(start[patch * G : (patch + 1) * G + 1], position, ratio[s], (R, C))
            pulled = np.einsum("grc,gk->krc", _sums(dense, level), loadings.astype(np.float64))
            pushed = loading_sums[patch][:, None, None] - pulled
            gradient += weights[s] * np.kron(pushed, np.ones((2**level, 2**level)))
        h = factors[patch, : R * C].astype(np.float64).T.reshape(K, R, C)
        out[patch] = h * gradient


def loading_gradient(
    factors: Array,
    factor_sums: Array,
    n_rows: int,
    n_cols: int,
    measured: BoolArray,
    start: Int64Array,
    position: Array,
    ratio: Array,
    levels: Int64Array,
    weights: Array,
    first: int,
    last: int,
    out: Array,
) -> None:
    """``Σ_b Σ_s w_s·(Σ_x h - Σ_e ratio_se·h)`` with dense sums of the quotients."""
    shape, G = (n_rows, n_cols), measured.shape[1]
    out[first:last] = 0
    for patch in range(len(factors)):
        for s, level in enumerate(levels):
            own = start[patch * G : (patch + 1) * G + 1]
            dense = _sums(_dense(own, position, ratio[s], shape), level)
            h = _level(factors[patch].astype(np.float64), shape, level)
            pulled = np.einsum("grc,rck->gk", dense, h)
            pushed = measured[patch][:, None] * factor_sums[patch]
            out[first:last] += weights[s] * (pushed - pulled)[first:last]


def _rate(factors: Array, loading: Array, shape: tuple[int, ...], level: int) -> Float64Array:
    """Rate of one gene in the bins of a level, at least `MIN_RATE`."""
    rate = _level(factors.astype(np.float64), shape, level) @ loading.astype(np.float64)
    return rate.clip(MIN_RATE)


def _level(factors: Float64Array, shape: tuple[int, ...], level: int) -> Float64Array:
    """Factors of a level's bins, (R >> level, C >> level, K)."""
    R, C = shape
    start = sum((R >> i) * (C >> i) for i in range(level))
    n_rows, n_cols = R >> level, C >> level
    return factors[start : start + n_rows * n_cols].reshape(n_rows, n_cols, -1)


def _dense(own: Int64Array, position: Array, value: Array, shape: tuple[int, ...]) -> Float64Array:
    """Values of one patch's counts as dense maps (G, R, C)."""
    dense = np.zeros((len(own) - 1, *shape))
    maps = dense.reshape(len(dense), -1)
    for gene in range(len(dense)):
        entries = slice(own[gene], own[gene + 1])
        maps[gene, position[entries].astype(np.int64)] = value[entries]
    return dense


def _sums(x: Float64Array, level: int) -> Float64Array:
    f = 2**level
    return x.reshape(*x.shape[:-2], x.shape[-2] // f, f, x.shape[-1] // f, f).sum((-3, -1))

"""Multi-scale Poisson deviance and its gradient on a CPU, computed map by map within the cache.

A map is one gene of one patch. The log-rates are read once. Exponential, tissue mask and the sums
at every scale are kept in a few scratch arrays of the size of one map, and the counts are passed as
a sparse list, so that no array of the size of the batch is allocated except the gradient.
`virchow_st.kernels.poisson_reference` is the same computation in plain NumPy.

Maps are independent and each writes to its own part of the output. Calls over disjoint ranges of
maps may therefore run in parallel (the GIL is released), and the result does not depend on how the
maps are divided.

Level 0 is the map of 2 µm bins itself; each further level sums 2×2 bins of the level before.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from virchow_st.kernels.elementary import OPTIONS, exp, log
from virchow_st.kernels.levels import log2
from virchow_st.types import Array, BoolArray, Float32Array, Float64Array, Int64Array

# exp(12) UMIs per 2 µm bin is beyond any real slide; the clamp only keeps a diverging run finite.
MAX_LOG_RATE = 12.0
MIN_LOG_RATE = -20.0

_SUMS = {**OPTIONS, "fastmath": {"contract", "reassoc", "nsz"}}  # sums may be reordered
_TINY = np.finfo(np.float32).tiny


@njit(cache=True, nogil=True, **OPTIONS)
def half_deviances(
    log_rate: Array,
    mask: BoolArray,
    start: Int64Array,
    position: Array,
    count: Float32Array,
    first: int,
    last: int,
    out: Float64Array,
) -> None:
    """Half the Poisson deviance of maps ``first`` to ``last - 1``, summed over the bins per level.

    Args:
        log_rate: (M, R, C) float32 or float64, log λ of 2 µm bins, clamped to ``MIN_LOG_RATE`` and
            ``MAX_LOG_RATE`` before use. R and C are multiples of ``2**(L - 1)``; C is a power of
            two.
        mask: (B, R, C) bool, True = tissue; map m belongs to patch ``m // (M // B)``.
        start: (M + 1,) index of each map's first count in ``position`` and ``count``.
        position: (n,) uint16 ``row * C + col``, in any order within a map, without repeats.
        count: (n,) UMIs, > 0; counts outside the mask are ignored.
        first, last: Half-open range of maps to compute.
        out: (M, L) output, ``Σ K·log(K/Λ) - K + Λ`` over the bins of each level; only the rows of
            the range are written.
    """
    M = len(log_rate)
    n_genes, n_levels = M // mask.shape[0], out.shape[1]
    rates = _levels(log_rate, n_levels)
    counts = _levels(log_rate, n_levels)
    for m in range(first, last):
        tissue, own = mask[m // n_genes], slice(start[m], start[m + 1])
        _masked_rate(log_rate[m], tissue, rates[0])
        n_umi = _sum_counts(position[own], count[own], tissue, counts)
        out[m, 0] = _surprise_of_bins(log_rate[m], position[own], count[own], tissue)
        for level in range(1, n_levels):
            _pool(rates[level - 1], rates[level])
            out[m, level] = _surprise(counts[level], rates[level])
        n_expected = _sum(rates[n_levels - 1])  # the same at every level
        for level in range(n_levels):
            out[m, level] += n_expected - n_umi


@njit(cache=True, nogil=True, **OPTIONS)
def half_deviance_gradient(
    log_rate: Array,
    mask: BoolArray,
    start: Int64Array,
    position: Array,
    count: Float32Array,
    weights: Array,
    first: int,
    last: int,
    out: Array,
) -> None:
    """Gradient of the weighted sum of `half_deviances` over levels, with respect to log λ.

    The gradient of a 2 µm bin is ``Σ_l w_l·λ·(1 - K_l/Λ_l)``, where K_l and Λ_l are the count and
    rate of the level-l bin that contains it. The same expression is used where the clamp is
    active, so that a diverged log-rate still has a gradient that pulls it back.

    Args:
        log_rate, mask, start, position, count, first, last: As in `half_deviances`.
        weights: (L,) w_l, in the dtype of ``log_rate``.
        out: (M, R, C) output, dtype of ``log_rate``; only the maps of the range are written.
    """
    M = len(log_rate)
    n_genes, n_levels = M // mask.shape[0], len(weights)
    rates = _levels(log_rate, n_levels)
    counts = _levels(log_rate, n_levels)
    for m in range(first, last):
        tissue, own = mask[m // n_genes], slice(start[m], start[m + 1])
        _masked_rate(log_rate[m], tissue, rates[0])
        _sum_counts(position[own], count[own], tissue, counts)
        for level in range(1, n_levels):
            _pool(rates[level - 1], rates[level])
        for level in range(n_levels - 1, 0, -1):  # `rates` now holds the weighted 1 - K/Λ
            _share_unexplained(weights[level], counts[level], rates[level])
            if level < n_levels - 1:
                _add_coarser(rates[level + 1], rates[level])
        if n_levels > 1:
            _times_coarser(rates[0], weights[0], rates[1], out[m])
        else:
            out[m] = weights[0] * rates[0]
        _subtract_counts(weights[0], position[own], count[own], tissue, out[m])


@njit(cache=True, nogil=True, **OPTIONS)
def _levels(log_rate: Array, n_levels: int) -> list[Array]:
    _, R, C = log_rate.shape
    return [np.empty((R >> level, C >> level), log_rate.dtype) for level in range(n_levels)]


@njit(cache=True, nogil=True, **OPTIONS)
def _masked_rate(log_rate: Array, tissue: BoolArray, out: Array) -> None:
    low, high = out.dtype.type(MIN_LOG_RATE), out.dtype.type(MAX_LOG_RATE)
    R, C = log_rate.shape
    for r in range(R):
        x, m, o = log_rate[r], tissue[r], out[r]
        for c in range(C):
            # Comparisons with NaN are False, so NaN passes through and shows in the loss.
            v = high if x[c] > high else x[c]
            v = low if v < low else v
            o[c] = exp(v) * out.dtype.type(m[c])


@njit(cache=True, nogil=True, **OPTIONS)
def _sum_counts(position: Array, count: Float32Array, tissue: BoolArray, out: list[Array]) -> float:
    """Write the summed counts of tissue bins to level 1 and coarser; returns their total UMIs."""
    R, C = tissue.shape
    first = out[1] if len(out) > 1 else np.empty((R >> 1, C >> 1), out[0].dtype)
    first[:] = 0
    tissue_flat, sums_flat = tissue.reshape(R * C), first.reshape(first.size)
    # Unsigned throughout: numba tests a signed index for being negative at every access.
    one, shift, low = np.uint32(1), np.uint32(log2(C)), np.uint32(C - 1)
    n_umi = 0.0
    for i in range(len(position)):
        p = np.uint32(position[i])
        if tissue_flat[p]:
            sums_flat[p >> (shift + one) << (shift - one) | (p & low) >> one] += count[i]
            n_umi += count[i]
    for level in range(2, len(out)):
        _pool(out[level - 1], out[level])
    return n_umi


@njit(cache=True, nogil=True, **OPTIONS)
def _surprise_of_bins(
    log_rate: Array, position: Array, count: Float32Array, tissue: BoolArray
) -> float:
    """``Σ k·log(k/λ)`` over the 2 µm tissue bins with counts."""
    x, tissue_flat = log_rate.reshape(log_rate.size), tissue.reshape(tissue.size)
    total = 0.0
    for i in range(len(position)):
        p, k = position[i], x.dtype.type(count[i])
        if tissue_flat[p]:
            clamped = min(max(x[p], MIN_LOG_RATE), MAX_LOG_RATE)
            log_k = log(k) if k > 1 else x.dtype.type(0)  # most counts are 1
            total += k * (log_k - clamped)
    return total


@njit(cache=True, nogil=True, **_SUMS)
def _surprise(counts: Array, rates: Array) -> float:
    """``Σ K·log(K/Λ)`` over bins with counts."""
    total = 0.0
    R, C = counts.shape
    for r in range(R):
        k, rate = counts[r], rates[r]
        for c in range(C):
            ratio = k[c] / rate[c] if k[c] > 0 else k.dtype.type(1)
            total += k[c] * log(ratio)
    return total


@njit(cache=True, nogil=True, **_SUMS)
def _sum(x: Array) -> float:
    total = 0.0
    for r in range(x.shape[0]):
        for c in range(x.shape[1]):
            total += x[r, c]
    return total


@njit(cache=True, nogil=True, **OPTIONS)
def _pool(x: Array, out: Array) -> None:
    for r in range(out.shape[0]):
        upper, lower, o = x[2 * r], x[2 * r + 1], out[r]
        for c in range(out.shape[1]):
            o[c] = (upper[2 * c] + upper[2 * c + 1]) + (lower[2 * c] + lower[2 * c + 1])


@njit(cache=True, nogil=True, **OPTIONS)
def _share_unexplained(weight: float, counts: Array, rates: Array) -> None:
    """Overwrite ``rates`` with ``w·(1 - K/Λ)``; bins without tissue get w, which has no effect."""
    one, tiny = rates.dtype.type(1), rates.dtype.type(_TINY)
    for r in range(rates.shape[0]):
        k, rate = counts[r], rates[r]
        for c in range(rates.shape[1]):
            rate[c] = weight * (one - k[c] / (rate[c] if rate[c] > tiny else tiny))


@njit(cache=True, nogil=True, **OPTIONS)
def _add_coarser(coarse: Array, out: Array) -> None:
    for r in range(out.shape[0]):
        x, o = coarse[r >> 1], out[r]
        for c in range(coarse.shape[1]):
            o[2 * c] += x[c]
            o[2 * c + 1] += x[c]


@njit(cache=True, nogil=True, **OPTIONS)
def _times_coarser(rate: Array, weight: float, coarse: Array, out: Array) -> None:
    for r in range(rate.shape[0]):
        x, f, o = rate[r], coarse[r >> 1], out[r]
        for c in range(coarse.shape[1]):
            o[2 * c] = x[2 * c] * (weight + f[c])
            o[2 * c + 1] = x[2 * c + 1] * (weight + f[c])


@njit(cache=True, nogil=True, **OPTIONS)
def _subtract_counts(
    weight: float, position: Array, count: Float32Array, tissue: BoolArray, out: Array
) -> None:
    tissue_flat, out_flat = tissue.reshape(tissue.size), out.reshape(out.size)
    for i in range(len(position)):
        p = position[i]
        if tissue_flat[p]:
            out_flat[p] -= weight * count[i]

"""Multi-scale Poisson deviance and its gradient, one map at a time while it lies in the cache.

The log-rates are read once. Exponential, tissue mask and the sums at every scale stay in a few
scratch arrays of a map's size, and the counts come as a list of non-zeros, so that nothing of the
batch's size is made but the gradient itself. `virchow_st.kernels.poisson_reference` says the same
in plain NumPy.

Maps are independent, and each writes to places of its own: calls over disjoint ranges of maps may
run side by side (the GIL is released), and the result does not depend on how they are divided.

Levels: 0 is the map itself, and each further one sums 2×2 bins of the one before.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from virchow_st.kernels.elementary import OPTIONS, exp, log
from virchow_st.types import Array, BoolArray, Float32Array, Float64Array, Int64Array

# exp(12) UMIs in a 2 µm bin is beyond any slide; the clamp only keeps a diverging run finite.
MAX_LOG_RATE = 12.0
MIN_LOG_RATE = -20.0

_SUMS = {**OPTIONS, "fastmath": {"contract", "reassoc", "nsz"}}  # a sum's terms in any order
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
    """Half the Poisson deviance of maps ``first`` to ``last - 1``, summed over bins, by level.

    Args:
        log_rate: (M, R, C) float32 or float64, log λ of 2 µm bins; used as clamped to
            ``MIN_LOG_RATE`` and ``MAX_LOG_RATE``. R and C are multiples of ``2**(L - 1)``, C a
            power of two.
        mask: (B, R, C) tissue; map m belongs to patch ``m // (M // B)``.
        start: (M + 1,) where each map's counts begin among the non-zeros.
        position: (n,) uint16 ``row * C + col``, in any order within a map, each once.
        count: (n,) UMIs, > 0; those outside the mask are passed over.
        first, last: range of maps.
        out: (M, L) ``Σ K·log(K/Λ) - K + Λ`` over the bins of each level; rows of the range are
            written.
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
    """Gradient of the weighted sum of `half_deviances` over levels; arguments as there.

    A bin gets ``Σ_l w_l·λ·(1 - K_l/Λ_l)`` with K_l and Λ_l the sums of the level's bin that holds
    it. That is the gradient beyond the clamp too, so that a rate that ran away is still pulled
    back.

    Args:
        weights: (L,) w_l, in the dtype of ``log_rate``.
        out: (M, R, C), dtype of ``log_rate``; maps of the range are written.
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
        for level in range(n_levels - 1, 0, -1):  # rates become the factors of Λ's gradient
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
            # Comparisons that are False for NaN let it through, to be seen in the loss.
            v = high if x[c] > high else x[c]
            v = low if v < low else v
            o[c] = exp(v) * out.dtype.type(m[c])


@njit(cache=True, nogil=True, **OPTIONS)
def _sum_counts(position: Array, count: Float32Array, tissue: BoolArray, out: list[Array]) -> float:
    """Write the counts of tissue bins, summed, to levels 1 on; returns the UMIs of all."""
    R, C = tissue.shape
    first = out[1] if len(out) > 1 else np.empty((R >> 1, C >> 1), out[0].dtype)
    first[:] = 0
    tissue_flat, sums_flat = tissue.reshape(R * C), first.reshape(first.size)
    # Unsigned throughout: an index that may be negative is tested for it, at every count.
    one, shift, low = np.uint32(1), np.uint32(_log2(C)), np.uint32(C - 1)
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
    """``Σ k·log(k/λ)`` over the 2 µm bins of tissue that hold counts."""
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
    """Rates become ``w·(1 - K/Λ)``; w where there is no tissue, which then counts nothing."""
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


@njit(cache=True, nogil=True)
def _log2(n: int) -> int:
    """Of a power of two; a position is split by shifts, since dividing takes long."""
    shift = 0
    while 1 << shift < n:
        shift += 1
    return shift

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
from virchow_st.kernels.levels import level_starts, log2
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
    quotients: Array,
) -> None:
    """Half the Poisson deviance of maps ``first`` to ``last - 1``, summed over the bins per level.

    Args:
        log_rate: (M, R, C) float32 or float64, log λ of 2 µm bins, clamped to ``MIN_LOG_RATE`` and
            ``MAX_LOG_RATE`` before use. R and C are even and multiples of ``2**(L - 1)``; C is a
            power of two.
        mask: (B, R, C) bool, True = tissue; map m belongs to patch ``m // (M // B)``.
        start: (M + 1,) index of each map's first count in ``position`` and ``count``.
        position: (n,) uint16 ``row * C + col``, in any order within a map, without repeats.
        count: (n,) UMIs, > 0; counts outside the mask are ignored.
        first, last: Half-open range of maps to compute.
        out: (M, L) output, ``Σ K·log(K/Λ) - K + Λ`` over the bins of each level; only the rows of
            the range are written.
        quotients: (M, Q) output, dtype of ``log_rate``: K/Λ of the bins of levels 1 to L - 1, one
            level after another, 0 without tissue. `half_deviance_gradient` needs them.
    """
    M, R, C = log_rate.shape
    n_genes, n_levels = M // mask.shape[0], out.shape[1]
    starts = level_starts(R, C, n_levels) - R * C
    rates = _coarse_levels(log_rate, n_levels)
    counts = _coarse_levels(log_rate, n_levels)
    row = np.empty(C, log_rate.dtype)
    for m in range(first, last):
        tissue, own = mask[m // n_genes], slice(start[m], start[m + 1])
        _sum_rates(log_rate[m], tissue, row, rates[0])
        out[m, 0], n_umi = _sum_counts(log_rate[m], position[own], count[own], tissue, counts[0])
        for level in range(1, n_levels):
            if level > 1:
                _pool(counts[level - 2], counts[level - 1])
                _pool(rates[level - 2], rates[level - 1])
            quotient = quotients[m, starts[level] : starts[level + 1]]
            out[m, level] = _surprise(counts[level - 1], rates[level - 1], quotient)
        n_expected = _sum(rates[len(rates) - 1])  # the same at every level
        for level in range(n_levels):
            out[m, level] += n_expected - n_umi


@njit(cache=True, nogil=True, **OPTIONS)
def half_deviance_gradient(
    log_rate: Array,
    mask: BoolArray,
    start: Int64Array,
    position: Array,
    count: Float32Array,
    quotients: Array,
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
        quotients: (M, Q) as `half_deviances` wrote them.
        weights: (L,) w_l, in the dtype of ``log_rate``.
        out: (M, R, C) output, dtype of ``log_rate``; only the maps of the range are written.
    """
    M, R, C = log_rate.shape
    n_genes, n_levels = M // mask.shape[0], len(weights)
    starts = level_starts(R, C, n_levels) - R * C
    shares = _coarse_levels(log_rate, n_levels)  # Σ w·(1 - K/Λ) over a level and coarser ones
    shares[len(shares) - 1][:] = 0
    row = np.empty(C, log_rate.dtype)
    for m in range(first, last):
        tissue, own = mask[m // n_genes], slice(start[m], start[m + 1])
        for level in range(n_levels - 1, 0, -1):
            quotient, share = quotients[m, starts[level] : starts[level + 1]], shares[level - 1]
            _unexplained(weights[level], quotient.reshape(share.shape), share)
            if level < n_levels - 1:
                _add_coarser(shares[level], share)
        _times_share(log_rate[m], tissue, weights[0], shares[0], row, out[m])
        if weights[0] != 0:
            _subtract_counts(weights[0], position[own], count[own], tissue, out[m])


@njit(cache=True, nogil=True, **OPTIONS)
def _coarse_levels(log_rate: Array, n_levels: int) -> list[Array]:
    """Scratch for a map at level 1, which is always computed, and coarser."""
    _, R, C = log_rate.shape
    return [
        np.empty((R >> level, C >> level), log_rate.dtype) for level in range(1, max(n_levels, 2))
    ]


@njit(cache=True, nogil=True, **OPTIONS)
def _rate(x: float, low: float, high: float) -> float:
    # Comparisons with NaN are False, so NaN passes through and shows in the loss.
    x = high if x > high else x
    return exp(low if x < low else x)


@njit(cache=True, nogil=True, **OPTIONS)
def _sum_rates(log_rate: Array, tissue: BoolArray, row: Array, out: Array) -> None:
    """Write the rates of tissue bins, summed over 2×2 bins; ``row`` is scratch."""
    number = out.dtype.type
    low, high = number(MIN_LOG_RATE), number(MAX_LOG_RATE)
    for r in range(out.shape[0]):
        upper, lower, o = 2 * r, 2 * r + 1, out[r]
        x, m = log_rate[upper], tissue[upper]
        for c in range(len(row)):
            rate = _rate(x[c], low, high)
            row[c] = rate if m[c] else number(0)
        x, m = log_rate[lower], tissue[lower]
        for c in range(len(row)):
            rate = _rate(x[c], low, high)
            row[c] += rate if m[c] else number(0)
        for c in range(len(o)):
            o[c] = row[2 * c] + row[2 * c + 1]


@njit(cache=True, nogil=True, **OPTIONS)
def _sum_counts(
    log_rate: Array, position: Array, count: Float32Array, tissue: BoolArray, out: Array
) -> tuple[float, float]:
    """Write the counts of tissue bins, summed over 2×2 bins.

    Returns:
        ``Σ k·log(k/λ)`` over the 2 µm tissue bins with counts, and their total UMIs.
    """
    number = log_rate.dtype.type
    low, high = number(MIN_LOG_RATE), number(MAX_LOG_RATE)
    out[:] = 0
    x, tissue_flat, sums = log_rate.reshape(-1), tissue.reshape(-1), out.reshape(-1)
    # Unsigned throughout: numba tests a signed index for being negative at every access.
    one, shift, in_row = (
        np.uint32(1),
        np.uint32(log2(tissue.shape[1])),
        np.uint32(tissue.shape[1] - 1),
    )
    surprise = n_umi = 0.0
    for i in range(len(position)):
        p = np.uint32(position[i])
        if tissue_flat[p]:
            k, v = number(count[i]), x[p]
            v = high if v > high else v
            v = low if v < low else v
            sums[p >> (shift + one) << (shift - one) | (p & in_row) >> one] += k
            surprise += k * ((log(k) if k > 1 else number(0)) - v)  # most counts are 1
            n_umi += k
    return surprise, n_umi


@njit(cache=True, nogil=True, **_SUMS)
def _surprise(counts: Array, rates: Array, quotient: Array) -> float:
    """``Σ K·log(K/Λ)`` over bins with counts; writes K/Λ, 0 for bins without tissue."""
    number = quotient.dtype.type
    tiny = number(_TINY)
    k, rate = counts.reshape(-1), rates.reshape(-1)
    total = 0.0
    for i in range(len(quotient)):
        quotient[i] = k[i] / (tiny if rate[i] < tiny else rate[i])
        total += k[i] * log(quotient[i] if k[i] > 0 else number(1))
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
def _unexplained(weight: float, quotient: Array, out: Array) -> None:
    """Write ``w·(1 - K/Λ)``."""
    one = out.dtype.type(1)
    for r in range(out.shape[0]):
        q, o = quotient[r], out[r]
        for c in range(out.shape[1]):
            o[c] = weight * (one - q[c])


@njit(cache=True, nogil=True, **OPTIONS)
def _add_coarser(coarse: Array, out: Array) -> None:
    for r in range(out.shape[0]):
        x, o = coarse[r >> 1], out[r]
        for c in range(coarse.shape[1]):
            o[2 * c] += x[c]
            o[2 * c + 1] += x[c]


@njit(cache=True, nogil=True, **OPTIONS)
def _times_share(
    log_rate: Array, tissue: BoolArray, weight: float, share: Array, row: Array, out: Array
) -> None:
    """Write λ times the weight plus the share of the 4 µm bin, 0 outside tissue."""
    number = out.dtype.type
    low, high = number(MIN_LOG_RATE), number(MAX_LOG_RATE)
    for r in range(share.shape[0]):
        f = share[r]
        for c in range(len(f)):
            row[2 * c] = row[2 * c + 1] = weight + f[c]
        for s in range(2 * r, 2 * r + 2):
            x, m, o = log_rate[s], tissue[s], out[s]
            for c in range(len(row)):
                rate = _rate(x[c], low, high) * row[c]
                o[c] = rate if m[c] else number(0)


@njit(cache=True, nogil=True, **OPTIONS)
def _subtract_counts(
    weight: float, position: Array, count: Float32Array, tissue: BoolArray, out: Array
) -> None:
    tissue_flat, out_flat = tissue.reshape(tissue.size), out.reshape(out.size)
    for i in range(len(position)):
        p = position[i]
        if tissue_flat[p]:
            out_flat[p] -= weight * count[i]

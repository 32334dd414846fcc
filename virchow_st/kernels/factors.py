"""Multi-scale Poisson deviance of a rate field of factors, at a cost of O(non-zeros · K) per scale.

The rate of gene g in a 2 µm bin x is ``λ_g(x) = Σ_k W_gk·h_k(x)``, with factors h ≥ 0 and loadings
W ≥ 0. A coarser bin's factors are the sums of its 2 µm bins' factors, and its rate is again W times
them. The sum of all rates is a product of sums, so single rates are needed only where there are
counts, and no array of the size genes × bins is made.

Level 0 is the map of 2 µm bins; each further level sums 2×2 bins of the level before. The factors
of all levels of a patch lie in one array (T, K), T being the number of bins of all levels: the bins
of a level in row-major order, level after level (`levels.level_starts`). The K factors of a bin are
contiguous, so that a rate is a product of two contiguous vectors.

Each function computes a range of independent parts (strips, maps, patches or genes) and writes only
to these. Calls over disjoint ranges may run in parallel (the GIL is released), and the result does
not depend on how the parts are divided. `virchow_st.kernels.factors_reference` is the same
computation in plain NumPy.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from virchow_st.kernels.elementary import OPTIONS, exp, log
from virchow_st.kernels.levels import coarse_bin, level_starts, log2
from virchow_st.kernels.poisson import MAX_LOG_RATE, MIN_LOG_RATE
from virchow_st.types import Array, BoolArray, Float32Array, Float64Array, Int64Array

# Smallest rate in a logarithm or quotient, of a bin of any size. Loadings may be 0; a count of such
# a gene then has a finite loss, and a gradient whose square float32 can hold. As for log-rates of
# genes, 2e-9 UMIs per bin is less than one UMI per gene and slide.
MIN_RATE = math.exp(MIN_LOG_RATE)

_PART = 64  # counts whose contributions are summed in the factors' dtype

_SUMS = {**OPTIONS, "fastmath": {"contract", "reassoc", "nsz"}}  # sums may be reordered


@njit(cache=True, nogil=True, **OPTIONS)
def factor_levels(
    log_factors: Array, mask: BoolArray, n_levels: int, first: int, last: int, out: Array
) -> None:
    """Factors of the bins of all levels, 0 in bins without tissue.

    A strip is one row of the coarsest bins; strip i belongs to patch ``i // (R >> (L - 1))``.

    Args:
        log_factors: (B, K, R, C) float32 or float64, log h of 2 µm bins, clamped to
            ``MIN_LOG_RATE`` and ``MAX_LOG_RATE`` before use. R and C are multiples of
            ``2**(L - 1)``; C is a power of two.
        mask: (B, R, C) bool, True = tissue.
        n_levels: L.
        first, last: Half-open range of strips to compute.
        out: (B, T, K) output, dtype of ``log_factors``.
    """
    _, K, R, C = log_factors.shape
    starts, coarsest = level_starts(R, C, n_levels), n_levels - 1
    row = np.empty((K, C), log_factors.dtype)
    for strip in range(first, last):
        patch, at = divmod(strip, R >> coarsest)
        bins = out[patch]
        for r in range(at << coarsest, (at + 1) << coarsest):
            for k in range(K):
                _masked_exp(log_factors[patch, k, r], mask[patch, r], row[k])
            _transpose(row, bins[r * C : (r + 1) * C])
        for level in range(1, n_levels):
            n_rows, width = 1 << (coarsest - level), C >> level
            for r in range(at * n_rows, (at + 1) * n_rows):
                for c in range(width):
                    fine = starts[level - 1] + 2 * r * 2 * width + 2 * c
                    _sum_of_four(bins, fine, fine + 2 * width, bins[starts[level] + r * width + c])


@njit(cache=True, nogil=True, **OPTIONS)
def factor_half_deviances(
    factors: Array,
    loadings: Array,
    mask: BoolArray,
    measured: BoolArray,
    start: Int64Array,
    position: Array,
    count: Float32Array,
    levels: Int64Array,
    first: int,
    last: int,
    out: Float64Array,
    ratio: Array,
) -> None:
    """Half the Poisson deviance without the sum of rates, of maps ``first`` to ``last - 1``.

    Map m is gene ``m % G`` of patch ``m // G``.

    Args:
        factors: (B, T, K) factors of all levels, from `factor_levels`.
        loadings: (G, K) loadings ≥ 0, dtype of ``factors``.
        mask: (B, R, C) bool, True = tissue; counts outside are ignored.
        measured: (B, G) bool; counts of genes that a patch's store did not measure are ignored.
        start: (B·G + 1,) index of each map's first count in ``position`` and ``count``.
        position: (n,) uint16 ``row * C + col``, in any order within a map, without repeats.
        count: (n,) UMIs, > 0.
        levels: (S,) levels to compute, increasing.
        first, last: Half-open range of maps to compute.
        out: (B·G, S) output, ``Σ Y·log(Y/Λ) - Y`` over the bins of each level, where Y is the count
            and Λ the rate of a bin; Λ is at least ``MIN_RATE``.
        ratio: (S, n) output, y/Λ of each count y at 2 µm, where Λ is the rate of the level's bin
            that contains it; 0 where the count is ignored. Dtype of ``factors``.
    """
    B, R, C = mask.shape
    G, floor = len(loadings), factors.dtype.type(MIN_RATE)
    tissue, starts, shift = mask.reshape(B, R * C), level_starts(R, C, levels[-1] + 1), log2(C)
    sums, touched = np.zeros(R * C), np.empty(R * C, np.int64)
    for s in range(len(levels)):
        level, start_of_level = levels[s], starts[levels[s]]
        for m in range(first, last):
            patch, gene = m // G, m % G
            loading = loadings[gene]
            total, n_touched = 0.0, 0
            for e in range(start[m], start[m + 1]):
                p = np.int64(position[e])
                ratio[s, e] = 0
                if tissue[patch, p] and measured[patch, gene]:
                    x = coarse_bin(p, shift, level)
                    rate = _dot(loading, factors[patch, start_of_level + x])
                    rate = floor if rate < floor else rate  # NaN stays
                    y = factors.dtype.type(count[e])
                    ratio[s, e] = y / rate
                    total -= y * log(rate)
                    if sums[x] == 0:
                        touched[n_touched] = x
                        n_touched += 1
                    sums[x] += y
            for i in range(n_touched):
                y_of_bin = sums[touched[i]]
                sums[touched[i]] = 0
                total -= y_of_bin
                if y_of_bin != 1:
                    total += y_of_bin * math.log(y_of_bin)
            out[m, s] = total


@njit(cache=True, nogil=True, **OPTIONS)
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
    """Gradient of the weighted sum of half deviances over levels, with respect to log h.

    The gradient of a 2 µm bin is ``h_k·Σ_s w_s·(Σ_g W_gk - Σ_e ratio_se·W_gk)``, where e runs over
    the counts in the level's bin that contains it and g is the gene of e. The same expression is
    used where the clamp is active, so that a diverged factor is still pulled back.

    Args:
        factors, loadings, start, position, ratio, levels: As in `factor_half_deviances`.
        loading_sums: (B, K) ``Σ_g W_gk`` over the genes that the patch's store measured.
        weights: (S,) w_s, dtype of ``factors``; a level of weight 0 costs nothing.
        first, last: Half-open range of patches to compute.
        out: (B, K, R, C) output, dtype of ``factors``.
    """
    G = len(loadings)
    _, K, R, C = out.shape
    n_levels = levels[-1] + 1
    starts, shift = level_starts(R, C, n_levels), log2(C)
    pulled = np.empty((starts[n_levels], K), factors.dtype)  # Σ_s w_s·Σ_e ratio_se·W_gk
    row, one = np.empty((C, K), factors.dtype), factors.dtype.type(1)
    for patch in range(first, last):
        pulled[:] = 0
        for s in range(len(levels)):
            level, weight = levels[s], weights[s]
            if weight != 0:
                of_level = pulled[starts[level] :]
                for gene in range(G):
                    m, loading = patch * G + gene, loadings[gene]
                    for e in range(start[m], start[m + 1]):
                        x = coarse_bin(position[e], shift, level)
                        _add_scaled(weight * ratio[s, e], loading, of_level[x])
        for level in range(n_levels - 1, 0, -1):
            width = C >> level
            for r in range(2 * (R >> level)):
                for c in range(2 * width):
                    coarse = starts[level] + (r >> 1) * width + (c >> 1)
                    _add_scaled(one, pulled[coarse], pulled[starts[level - 1] + r * 2 * width + c])
        pushed = weights.sum() * loading_sums[patch]
        for r in range(R):
            for c in range(C):
                _times_difference(factors[patch, r * C + c], pushed, pulled[r * C + c], row[c])
            _transpose(row, out[patch, :, r])


@njit(cache=True, nogil=True, **OPTIONS)
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
    """Gradient of the weighted sum of half deviances over levels, with respect to loadings.

    The gradient is ``Σ_b Σ_s w_s·(Σ_x h_k(x) - Σ_e ratio_se·h_k(x_s(e)))``, where e runs over the
    counts of the gene and ``x_s(e)`` is the level's bin that contains it; patches whose store did
    not measure the gene are left out.

    Args:
        factors, measured, start, position, ratio, levels: As in `factor_half_deviances`.
        factor_sums: (B, K) ``Σ_x h_k(x)`` over a patch, the same at every level; dtype of
            ``factors``.
        n_rows, n_cols: R and C.
        weights: (S,) w_s, dtype of ``factors``; a level of weight 0 costs nothing.
        first, last: Half-open range of genes to compute.
        out: (G, K) output, dtype of ``factors``.
    """
    B, G = measured.shape
    starts, shift = level_starts(n_rows, n_cols, levels[-1] + 1), log2(n_cols)
    K, one = factors.shape[2], np.float64(1)
    part, total, total_weight = np.empty(K, factors.dtype), np.empty(K), weights.sum()
    for gene in range(first, last):
        total[:] = 0
        for patch in range(B):
            if measured[patch, gene]:
                _add_scaled(np.float64(total_weight), factor_sums[patch], total)
            m = patch * G + gene
            for begin in range(start[m], start[m + 1], _PART):  # float64 sums of float32 sums
                part[:] = 0
                for s in range(len(levels)):
                    level, weight, start_of_level = levels[s], weights[s], starts[levels[s]]
                    if weight != 0:
                        for e in range(begin, min(begin + _PART, start[m + 1])):
                            x = start_of_level + coarse_bin(position[e], shift, level)
                            _add_scaled(weight * ratio[s, e], factors[patch, x], part)
                _add_scaled(-one, part, total)
        out[gene] = total


@njit(cache=True, nogil=True, **OPTIONS)
def _masked_exp(log_factor: Array, tissue: BoolArray, out: Array) -> None:
    low, high = out.dtype.type(MIN_LOG_RATE), out.dtype.type(MAX_LOG_RATE)
    for c in range(len(out)):
        # Comparisons with NaN are False, so NaN passes through and shows in the loss.
        v = high if log_factor[c] > high else log_factor[c]
        v = low if v < low else v
        out[c] = exp(v) * out.dtype.type(tissue[c])


@njit(cache=True, nogil=True)
def _transpose(x: Array, out: Array) -> None:
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = x[j, i]


@njit(cache=True, nogil=True, **OPTIONS)
def _sum_of_four(bins: Array, upper: int, lower: int, out: Array) -> None:
    a, b, c, d = bins[upper], bins[upper + 1], bins[lower], bins[lower + 1]
    for k in range(len(out)):
        out[k] = (a[k] + b[k]) + (c[k] + d[k])


@njit(cache=True, nogil=True, **_SUMS)
def _dot(x: Array, y: Array) -> float:
    total = x.dtype.type(0)
    for k in range(len(x)):
        total += x[k] * y[k]
    return total


@njit(cache=True, nogil=True, **OPTIONS)
def _add_scaled(scale: float, x: Array, out: Array) -> None:
    for k in range(len(out)):
        out[k] += scale * x[k]


@njit(cache=True, nogil=True, **OPTIONS)
def _times_difference(x: Array, a: Array, b: Array, out: Array) -> None:
    for k in range(len(out)):
        out[k] = x[k] * (a[k] - b[k])

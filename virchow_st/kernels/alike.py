"""Weighted means over the bins around each bin that are like it.

An adaptive filter: the weight of a bin falls with its distance on the lattice, by a Gaussian, and
with its distance in features, by Tukey's biweight (a bilateral filter: Tomasi & Manduchi, ICCV
1998, 839; features that are a first estimate of the map itself: Buades, Coll & Morel, CVPR 2005,
II-60). Rows of the output are independent; calls over disjoint ranges may run in parallel (the GIL
is released), and the result does not depend on how bins are divided.
`virchow_st.kernels.alike_reference` is the same computation in plain NumPy.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from virchow_st.types import Array, Float32Array, Int64Array


# Sums over factors and features may be reordered, so that several are computed at a time (SIMD).
@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def alike_means(
    values: Float32Array,
    base: Float32Array,
    feature: Float32Array,
    number: Array,
    place: Int64Array,
    kernel: Float32Array,
    span: float,
    first: int,
    last: int,
    out: Float32Array,
) -> None:
    """Ratios ``Σ_j w_ij v_jk / Σ_j w_ij b_jk`` of the bins ``first`` to ``last - 1``.

    The weight is ``w_ij = g(Δrow)·g(Δcol)·max(0, 1 − d²/span)²``, where d² is the squared distance
    of the features of i and j.

    Args:
        values: (n, K) float32, UMIs v.
        base: (n, K) float32 > 0, or (n, 1) for one that all columns share.
        feature: (n, F) float32.
        number: (R, C) int32, the number of the bin at each place of the lattice; -1 for none.
        place: (n,) int64, ``row * C + col`` of each bin.
        kernel: (2r + 1,) float32, Gaussian weights g of the distances -r to r, in bins.
        span: Squared distance of features at which the weight is 0; > 0.
        first, last: Half-open range of bins to compute.
        out: (n, K) float32 output; only the rows of the range are written.
    """
    n_rows, n_cols = number.shape
    K, n_base, F = values.shape[1], base.shape[1], feature.shape[1]
    reach = len(kernel) // 2
    per_span = np.float32(1.0 / span)
    above, below = np.empty(K, np.float32), np.empty(n_base, np.float32)
    for i in range(first, last):
        row, col = place[i] // n_cols, place[i] % n_cols
        above[:] = 0
        below[:] = 0
        for r in range(max(row - reach, 0), min(row + reach + 1, n_rows)):
            of_row = kernel[r - row + reach]
            for c in range(max(col - reach, 0), min(col + reach + 1, n_cols)):
                j = number[r, c]
                if j < 0:
                    continue
                distance = np.float32(0)
                for f in range(F):
                    apart = feature[i, f] - feature[j, f]
                    distance += apart * apart
                like = np.float32(1) - distance * per_span
                if like <= 0:
                    continue
                weight = of_row * kernel[c - col + reach] * like * like
                for k in range(n_base):
                    below[k] += weight * base[j, k]
                for k in range(K):
                    above[k] += weight * values[j, k]
        for k in range(K):
            out[i, k] = above[k] / below[k if n_base > 1 else 0]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def alike_shares(
    base: Float32Array,
    feature: Float32Array,
    number: Array,
    place: Int64Array,
    kernel: Float32Array,
    span: float,
    side: int,
    first: int,
    last: int,
    own: Float32Array,
    of_cell: Float32Array,
) -> None:
    """What a bin itself, and its cell, have of the weights ``w_ij b_jk`` of `alike_means`.

    Args:
        base, feature, number, place, kernel, span, first, last: As for `alike_means`.
        side: Bins along a side of a cell; cells begin at the corner of the lattice.
        own: (n, K) float32 output, ``w_ii b_ik / Σ_j w_ij b_jk``, with the K of ``base``.
        of_cell: (n, K) float32 output, the same with the sum over the cell of i above.
    """
    n_rows, n_cols = number.shape
    K, F = base.shape[1], feature.shape[1]
    reach = len(kernel) // 2
    per_span = np.float32(1.0 / span)
    centre = kernel[reach] * kernel[reach]
    within, below = np.empty(K, np.float32), np.empty(K, np.float32)
    for i in range(first, last):
        row, col = place[i] // n_cols, place[i] % n_cols
        within[:] = 0
        below[:] = 0
        for r in range(max(row - reach, 0), min(row + reach + 1, n_rows)):
            of_row = kernel[r - row + reach]
            for c in range(max(col - reach, 0), min(col + reach + 1, n_cols)):
                j = number[r, c]
                if j < 0:
                    continue
                distance = np.float32(0)
                for f in range(F):
                    apart = feature[i, f] - feature[j, f]
                    distance += apart * apart
                like = np.float32(1) - distance * per_span
                if like <= 0:
                    continue
                weight = of_row * kernel[c - col + reach] * like * like
                in_cell = r // side == row // side and c // side == col // side
                for k in range(K):
                    below[k] += weight * base[j, k]
                    if in_cell:
                        within[k] += weight * base[j, k]
        for k in range(K):
            own[i, k] = centre * base[i, k] / below[k]
            of_cell[i, k] = within[k] / below[k]

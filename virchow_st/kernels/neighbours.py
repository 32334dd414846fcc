"""Sums over pairs of neighbouring bins of a patch, from which Moran's I is computed."""

from __future__ import annotations

import numpy as np
from numba import njit

from virchow_st.types import Array, BoolArray, Float64Array


# Reassociation lets the compiler keep several partial sums (SIMD); NaN and inf still propagate.
@njit(cache=True, nogil=True, fastmath={"reassoc"})
def neighbour_sums(x: Array, y: Array, mask: BoolArray) -> tuple[Float64Array, int]:
    """Sums over the pairs of bins inside the mask that share a side (rook neighbours).

    Each pair {i, j} is counted once. Bins outside the mask are treated as 0, so that their products
    vanish without a test per pair.

    Args:
        x: (G, R, C) real, such as predicted rates.
        y: (G, R, C) real, such as counts.
        mask: (R, C) bool; values where it is False are never read, so they may be NaN.

    Returns:
        (G, 5) float64 sums over pairs, Σ xᵢxⱼ, Σ yᵢyⱼ, Σ (xᵢyⱼ + xⱼyᵢ), Σ (xᵢ + xⱼ) and
        Σ (yᵢ + yⱼ); and the number of pairs, which is the same for all genes.
    """
    G, R, C = x.shape
    degree, n_pairs = _degrees(mask)
    out = np.zeros((G, 5))
    a, b = np.zeros((2, C + 1)), np.zeros((2, C + 1))  # this row and the row above, padded with 0
    for g in range(G):
        xx = yy = xy = sx = sy = 0.0
        a[:], b[:] = 0.0, 0.0
        for r in range(R):
            a1, a0, b1, b0 = a[r % 2], a[1 - r % 2], b[r % 2], b[1 - r % 2]
            for c in range(C):
                a1[c] = np.float64(x[g, r, c]) if mask[r, c] else 0.0
                b1[c] = np.float64(y[g, r, c]) if mask[r, c] else 0.0
            for c in range(C):
                next_a, next_b = a1[c + 1] + a0[c], b1[c + 1] + b0[c]
                xx += a1[c] * next_a
                yy += b1[c] * next_b
                xy += a1[c] * next_b + b1[c] * next_a
                sx += degree[r, c] * a1[c]
                sy += degree[r, c] * b1[c]
        out[g, 0] = xx
        out[g, 1] = yy
        out[g, 2] = xy
        out[g, 3] = sx
        out[g, 4] = sy
    return out, n_pairs


@njit(cache=True, nogil=True)
def _degrees(mask: BoolArray) -> tuple[Float64Array, int]:
    """Number of neighbours of every bin inside the mask, (R, C) float64, and number of pairs."""
    R, C = mask.shape
    degree = np.zeros((R, C))
    n_pairs = 0
    for r in range(R):
        for c in range(C):
            if mask[r, c]:
                if c + 1 < C and mask[r, c + 1]:
                    degree[r, c] += 1.0
                    degree[r, c + 1] += 1.0
                    n_pairs += 1
                if r + 1 < R and mask[r + 1, c]:
                    degree[r, c] += 1.0
                    degree[r + 1, c] += 1.0
                    n_pairs += 1
    return degree, n_pairs

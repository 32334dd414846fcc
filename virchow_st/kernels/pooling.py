"""Sum-pooling of maps from 2 µm bins to coarser ones. Counts and rates add, so they are summed."""

from __future__ import annotations

import numpy as np
from numba import njit

from virchow_st.types import Array, BoolArray, Float64Array


@njit(cache=True, nogil=True)
def sum_pool(x: Array, factor: int) -> Float64Array:
    """Sum a map over blocks of ``factor`` × ``factor`` bins.

    Args:
        x: (G, R, C), any real dtype, C-contiguous for speed; R and C are multiples of ``factor``.
        factor: bins of the input along a side of an output bin, ≥ 1.

    Returns:
        (G, R // factor, C // factor) float64. Integer counts stay exact (below 2⁵³), and the total
        of every gene is kept.

    Raises:
        ValueError: ``factor`` does not divide R and C; a remainder would lose counts.
    """
    G, R, C = x.shape
    if factor < 1 or R % factor != 0 or C % factor != 0:
        raise ValueError("sum_pool: expected a factor that divides both sides of the map")
    out = np.zeros((G, R // factor, C // factor))
    for g in range(G):
        for r in range(R):
            for c in range(C // factor):
                block_row = 0.0
                for k in range(factor):
                    block_row += x[g, r, c * factor + k]
                out[g, r // factor, c] += block_row
    return out


@njit(cache=True, nogil=True)
def pool_mask(mask: BoolArray, factor: int) -> BoolArray:
    """Mark the coarse bins whose ``factor`` × ``factor`` fine bins are all True.

    Partly covered bins are left out: their sums would follow the outline of the tissue, which
    prediction and observation share, and be taken for agreement.

    Args:
        mask: (R, C) bool; R and C are multiples of ``factor``.
        factor: fine bins along a side of a coarse one, ≥ 1.

    Returns:
        (R // factor, C // factor) bool.

    Raises:
        ValueError: ``factor`` does not divide R and C.
    """
    R, C = mask.shape
    if factor < 1 or R % factor != 0 or C % factor != 0:
        raise ValueError("pool_mask: expected a factor that divides both sides of the mask")
    out = np.ones((R // factor, C // factor), dtype=np.bool_)
    for r in range(R):
        for c in range(C):
            if not mask[r, c]:
                out[r // factor, c // factor] = False
    return out

"""Sum-pooling of maps from 2 µm bins to coarser bins. Counts and rates are summed, not averaged."""

from __future__ import annotations

import numpy as np
from numba import njit

from virchow_st.types import Array, BoolArray, Float64Array


@njit(cache=True, nogil=True)
def sum_pool(x: Array, factor: int) -> Float64Array:
    """Sum a map over blocks of ``factor`` × ``factor`` bins.

    Args:
        x: (G, R, C), any real dtype, C-contiguous for speed; R and C are multiples of ``factor``.
        factor: Side of an output bin in input bins, ≥ 1.

    Returns:
        (G, R // factor, C // factor) float64. Integer counts stay exact (below 2⁵³), and the total
        of every gene is preserved.

    Raises:
        ValueError: ``factor`` does not divide R and C, so that counts would be lost.

    Example:
        >>> import numpy as np
        >>> sum_pool(np.arange(16).reshape(1, 4, 4), 2).tolist()
        [[[10.0, 18.0], [42.0, 50.0]]]
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

    Partly covered bins are left out. Their sums would follow the outline of the tissue, which is
    the same in prediction and observation, and would be mistaken for agreement.

    Args:
        mask: (R, C) bool; R and C are multiples of ``factor``.
        factor: Side of a coarse bin in fine bins, ≥ 1.

    Returns:
        (R // factor, C // factor) bool.

    Raises:
        ValueError: ``factor`` does not divide R and C.

    Example:
        >>> import numpy as np
        >>> pool_mask(np.array([[True, True, True, False], [True, True, True, True]]), 2).tolist()
        [[True, False]]
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

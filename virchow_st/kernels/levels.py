"""Indices of bins of coarser levels, for use inside and outside numba functions.

Level 0 is a map of 2 µm bins; each further level sums 2×2 bins of the level before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from virchow_st.types import Int64Array


@njit(cache=True, nogil=True)
def level_starts(n_rows: int, n_cols: int, n_levels: int) -> Int64Array:
    """Index of the first bin of each level, where the bins of all levels lie one after another.

    The last element is the number of bins of all levels.

    Args:
        n_rows, n_cols: Number of rows and columns of the map of 2 µm bins.
        n_levels: L.

    Returns:
        (L + 1,) int64.

    Example:
        >>> level_starts(4, 4, 3).tolist()
        [0, 16, 20, 21]
    """
    starts = np.zeros(n_levels + 1, np.int64)
    for level in range(n_levels):
        starts[level + 1] = starts[level] + (n_rows >> level) * (n_cols >> level)
    return starts


@njit(cache=True, nogil=True)
def coarse_bin(position: int, shift: int, level: int) -> Any:
    """Row-major index of a level's bin that contains a 2 µm bin.

    Args:
        position: ``row * C + col`` of the 2 µm bin.
        shift: Base-2 logarithm of C.
        level: Level of the coarser bin.

    Example:
        >>> coarse_bin(3 * 8 + 5, 3, 1)
        6
    """
    row, col = np.int64(position) >> shift, np.int64(position) & ((1 << shift) - 1)
    return ((row >> level) << (shift - level)) | (col >> level)


@njit(cache=True, nogil=True)
def log2(n: int) -> int:
    """Base-2 logarithm of a power of two; positions are split by shifts, cheaper than division.

    Example:
        >>> log2(128)
        7
    """
    shift = 0
    while 1 << shift < n:
        shift += 1
    return shift

"""Extends a patch's array by a margin of its neighbouring patches in the same store."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from virchow_st.store.reader import Patch
from virchow_st.types import PATCH_BINS, Array

_AROUND = [(row, col) for row in (-1, 0, 1) for col in (-1, 0, 1) if (row, col) != (0, 0)]


def with_margin(patch: Patch, read: Callable[[Patch], Array], cells: int) -> Array:
    """Read an array of a patch, extended on all sides by rows and columns of its neighbours.

    Where a neighbour is missing, the values at the patch's edge are repeated.

    Args:
        patch: the patch in the centre.
        read: function from a patch to its array (S, S, …), rows and columns as in the bin grid.
        cells: rows and columns of the margin, at most S.

    Returns:
        (S + 2·cells, S + 2·cells, …) array of the same dtype.
    """
    own = read(patch)
    if cells == 0:
        return own
    side, store = len(own), patch.store
    margin = [(cells, cells)] * 2 + [(0, 0)] * (own.ndim - 2)
    padded = np.pad(own, margin, mode="edge")
    # Slices of the result, and of the neighbour, for the neighbour before, itself, and after.
    into = {-1: slice(0, cells), 0: slice(cells, cells + side), 1: slice(cells + side, None)}
    part = {-1: slice(side - cells, None), 0: slice(None), 1: slice(0, cells)}
    for row, col in _AROUND:
        place = (patch.row0 + row * PATCH_BINS, patch.col0 + col * PATCH_BINS)
        if (beside := store.places.get(place)) is not None:
            padded[into[row], into[col]] = read(store[beside])[part[row], part[col]]
    return padded

"""Windows of the size of a patch, with a margin, put together from patches of the same store."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np

from virchow_st.store.reader import Patch
from virchow_st.types import PATCH_BINS, Array

Shift = tuple[int, int]
"""Half patches down and to the right that a window is shifted by, each -1, 0 or 1."""


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
    return read(patch) if cells == 0 else _put_together(patch, (0, 0), read, cells)


def has_window(patch: Patch, shift: Shift) -> bool:
    """Whether all patches are there that a window shifted by half patches is cut from."""
    return all(_beside(patch, at) is not None for at in _parts(shift))


def window(patch: Patch, shift: Shift, read: Callable[[Patch], Array], cells: int) -> Array:
    """Read an array of a window that lies half a patch beside a patch, with a margin.

    Args:
        patch: the patch that the shift starts from.
        shift: half patches down and to the right; (0, 0) is the patch itself, as `with_margin`.
        read: function from a patch to its array (S, S, …), S even.
        cells: rows and columns of the margin, at most S / 2. Where the patch is missing that a part
            of it lies in, the values at the edge of the patches of the window are repeated.

    Returns:
        (S + 2·cells, S + 2·cells, …) array of the same dtype.

    Raises:
        ValueError: the store lacks a patch of the window, see `has_window`.
    """
    if not has_window(patch, shift):
        raise ValueError(f"{patch.store.path}: patch {patch.index} has no neighbours {shift}")
    if shift == (0, 0):
        return with_margin(patch, read, cells)
    return _put_together(patch, shift, read, cells)


def _put_together(patch: Patch, shift: Shift, read: Callable[[Patch], Array], cells: int) -> Array:
    own = read(patch)
    side = len(own)
    rows, cols = (_cuts(half, side, cells) for half in shift)
    found = np.empty((side + 2 * cells, side + 2 * cells, *own.shape[2:]), own.dtype)
    parts = _parts(shift)

    def put(at: tuple[int, int], values: Array) -> None:
        (row, into_row), (col, into_col) = rows[at[0]], cols[at[1]]
        found[into_row, into_col] = values[row, col]

    for at in parts:
        beside = _beside(patch, at)
        assert beside is not None
        put(at, own if at == (0, 0) else read(beside))
    for half, edges in zip(shift, (found, found.swapaxes(0, 1)), strict=True):
        if half == 0 and cells:
            edges[:cells] = edges[cells]
            edges[-cells:] = edges[-cells - 1]
    for at in product(rows, cols) if cells else ():
        if at not in parts and (beside := _beside(patch, at)) is not None:
            put(at, read(beside))
    return found


def _parts(shift: Shift) -> list[tuple[int, int]]:
    """Steps to the patches that a window is cut from, in patches down and to the right."""
    rows, cols = ((0,) if half == 0 else (min(half, 0), max(half, 0)) for half in shift)
    return list(product(rows, cols))


def _cuts(half: int, side: int, cells: int) -> dict[int, tuple[slice, slice]]:
    """Step to a patch along an axis → the cells taken from it, and where they go."""
    if half == 0:
        return {
            -1: (slice(side - cells, None), slice(0, cells)),
            0: (slice(None), slice(cells, cells + side)),
            1: (slice(0, cells), slice(cells + side, None)),
        }
    n = side // 2 + cells
    return {
        min(half, 0): (slice(side - n, None), slice(0, n)),
        max(half, 0): (slice(0, n), slice(n, None)),
    }


def _beside(patch: Patch, at: tuple[int, int]) -> Patch | None:
    """The patch so many patches down and to the right, if the store has it."""
    if at == (0, 0):
        return patch
    place = (patch.row0 + at[0] * PATCH_BINS, patch.col0 + at[1] * PATCH_BINS)
    index = patch.store.places.get(place)
    return None if index is None else patch.store[index]

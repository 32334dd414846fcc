"""How test patches lie on their slide: which stands in for which, and which make a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from virchow_st.run.split import square_blocks
from virchow_st.store.format import PatchInfo
from virchow_st.types import PATCH_BINS, PATCH_UM, Int64Array

NOBODY = -1
"""Place of a patch that no other stands in for."""
_BLOCK_PATCHES = 2
_LEAST_BLOCKS = 8  # fewer make no distribution to draw from


def shuffled_places(n: int) -> Int64Array:
    """For each of a slide's n patches, the place of the one whose prediction is laid on it.

    A fixed random cycle through all of them, so that none stands in for itself; (n,) int64,
    `NOBODY` for a single patch.
    """
    if n < 2:
        return np.full(n, NOBODY)
    cycle = np.random.default_rng(0).permutation(n)
    places = np.empty(n, np.int64)
    places[cycle] = np.roll(cycle, -1)
    return places


def shifted_places(infos: Sequence[PatchInfo]) -> Int64Array:
    """The same under a shift of the whole slide's prediction, round the edges of its bounding box.

    Neighbours stay neighbours but at the wrap, so a smooth map is as smooth under this null as
    under the prediction. The shift is a whole number of patches, at least a quarter of the box in
    rows or in columns; of these the one that leaves most patches with a partner, then the one
    nearest to half the box both ways. It depends on where the patches lie alone.

    Returns (n,) int64, `NOBODY` where the shift brings no patch.
    """
    row, col = _lattice(infos)
    rows, cols = row.max() + 1, col.max() + 1
    at = np.full((rows, cols), NOBODY)
    at[row, col] = np.arange(len(infos))
    best, most = np.full(len(infos), NOBODY), (0, 0.0)
    for down in range(rows):
        for right in range(cols):
            far = min(down, rows - down) / rows, min(right, cols - right) / cols
            if max(far) < 0.25:
                continue
            places = at[(row + down) % rows, (col + right) % cols]
            if (rank := (int((places != NOBODY).sum()), sum(far))) > most:
                best, most = places, rank
    return best


@dataclass(frozen=True)
class Blocks:
    """Squares of neighbouring patches, which the bootstrap draws as one.

    Attributes:
        of_patch: block of each patch, (n,) int64 a slide; numbered through all slides.
        n_blocks: number of blocks over all slides.
        um: side of a block, µm.
    """

    of_patch: tuple[Int64Array, ...]
    n_blocks: int
    um: int


def cut_blocks(slides: Sequence[Sequence[PatchInfo]]) -> Blocks:
    """Blocks of 2 × 2 patches; single patches where those would be fewer than 8 in all."""
    for side in (_BLOCK_PATCHES, 1):
        of_patch, n_blocks = [], 0
        for infos in slides:
            row, col = _lattice(infos)
            block = square_blocks(row, col, side)
            of_patch.append(block + n_blocks)
            n_blocks += int(block.max()) + 1
        if n_blocks >= _LEAST_BLOCKS:
            break
    return Blocks(tuple(of_patch), n_blocks, side * PATCH_UM)


def _lattice(infos: Sequence[PatchInfo]) -> tuple[Int64Array, Int64Array]:
    """Row and column of each patch in the slide's bounding box, in patches."""
    row = np.array([info.row0 for info in infos])
    col = np.array([info.col0 for info in infos])
    return (row - row.min()) // PATCH_BINS, (col - col.min()) // PATCH_BINS

"""Spatial arrangement of test patches: partners for the null scores, and blocks to resample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from virchow_st.run.split import BLOCK_PATCHES, LEAST_BLOCKS, square_blocks
from virchow_st.store.format import PatchInfo
from virchow_st.types import PATCH_BINS, PATCH_UM, Int64Array

NOBODY = -1
"""Marks a patch for which a null has no partner patch."""


def shuffled_places(n: int) -> Int64Array:
    """Partner of each patch for the shuffled null: the patch whose prediction is scored on it.

    The partners form a fixed random cycle through all patches of a slide, so that no patch is its
    own partner.

    Args:
        n: Number of patches of the slide.

    Returns:
        (n,) int64 indices of the partners; `NOBODY` for a single patch.

    Example:
        >>> shuffled_places(4)
        array([1, 3, 0, 2])
    """
    if n < 2:
        return np.full(n, NOBODY)
    cycle = np.random.default_rng(0).permutation(n)
    places = np.empty(n, np.int64)
    places[cycle] = np.roll(cycle, -1)
    return places


def shifted_places(infos: Sequence[PatchInfo]) -> Int64Array:
    """Partner of each patch for the shifted null: a cyclic shift of the slide's whole prediction.

    The shift wraps around the slide's bounding box. Neighbours stay neighbours except at the wrap,
    so the shifted prediction is as smooth as the prediction itself. The shift is a whole number of
    patches, at least a quarter of the box in rows or in columns. Of these shifts the one is taken
    that gives most patches a partner, and among equal ones that nearest to half the box in both
    directions. It depends only on the positions of the patches.

    Args:
        infos: Positions of the slide's n patches.

    Returns:
        (n,) int64 indices of the partners; `NOBODY` where the shift leaves a patch empty.
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
    """Spatial blocks of neighbouring patches, the units that the bootstrap draws.

    Attributes:
        of_patch: Block index of each patch, (n,) int64 per slide; unique over all slides.
        n_blocks: Number of blocks over all slides.
        um: Side of a block, µm.
    """

    of_patch: tuple[Int64Array, ...]
    n_blocks: int
    um: int


def cut_blocks(slides: Sequence[Sequence[PatchInfo]]) -> Blocks:
    """Divide slides into blocks of 2 × 2 patches, or of single patches if these were fewer than 8.

    Args:
        slides: Positions of the patches of each slide.
    """
    for side in (BLOCK_PATCHES, 1):
        of_patch, n_blocks = [], 0
        for infos in slides:
            row, col = _lattice(infos)
            block = square_blocks(row, col, side)
            of_patch.append(block + n_blocks)
            n_blocks += int(block.max()) + 1
        if n_blocks >= LEAST_BLOCKS:
            break
    return Blocks(tuple(of_patch), n_blocks, side * PATCH_UM)


def _lattice(infos: Sequence[PatchInfo]) -> tuple[Int64Array, Int64Array]:
    """Row and column of each patch in the slide's bounding box, in patches."""
    row = np.array([info.row0 for info in infos])
    col = np.array([info.col0 for info in infos])
    return (row - row.min()) // PATCH_BINS, (col - col.min()) // PATCH_BINS

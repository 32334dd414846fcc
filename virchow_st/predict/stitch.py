"""Blends overlapping patches and hands on each block of the slide as soon as it is complete."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from virchow_st.predict.lattice import window
from virchow_st.slide.patches import PatchTable
from virchow_st.types import BLOCK_BINS, CELL_BINS, PATCH_BINS, BoolArray, Float32Array

Write = Callable[[int, int, Float32Array, BoolArray], None]
Place = tuple[int, int]


class Stitcher:
    """Weighted means of overlapping patches, written block by block.

    A block is written after the last patch that touches it was added. With patches in the order of
    `lay_over`, one block is unfinished at a time without overlap, and one row of blocks with it.

    Args:
        patches: all patches that will be added.
        overlap_bins: bins that neighbouring patches share.
        shape: rows and columns of the grid; bins beyond it are cut off.
        write: called with a block's first row and column, its rates (N, h, w), NaN outside patches
            and in bins left out, and the mask (h, w) bool of the bins inside patches.
        finished: blocks that are written already, and the number of bins left out in each.
    """

    def __init__(
        self,
        patches: PatchTable,
        overlap_bins: int,
        shape: tuple[int, int],
        write: Write,
        finished: Mapping[Place, int] | None = None,
    ) -> None:
        self._finished = finished or {}
        self._shape = shape
        self._write = write
        self._window = window(overlap_bins)
        self._missing = Counter(
            place
            for row0, col0 in zip(patches.row0.tolist(), patches.col0.tolist(), strict=True)
            for place in self._touched(row0, col0)
        )
        self._open: dict[Place, tuple[Float32Array, Float32Array]] = {}
        self.most_open = 0
        """Largest number of unfinished blocks so far."""
        self.n_bins = _n_bins(patches, shape)
        """Number of bins of the grid that lie in a patch."""
        self.n_left_out = sum(self._finished.values())
        """Number of those, of blocks written so far, that are left out."""

    def needs(self, row0: int, col0: int) -> bool:
        """Whether the patch that begins at bin (row0, col0) touches a block not written yet."""
        return any(place not in self._finished for place in self._touched(row0, col0))

    def add(self, row0: int, col0: int, rates: Float32Array) -> None:
        """Add the rates (N, 128, 128) of the patch that begins at bin (row0, col0).

        A bin that is NaN in one of the patches over it is left out.
        """
        for place in self._touched(row0, col0):
            if place in self._finished:
                continue
            if place not in self._open:
                size = [min(BLOCK_BINS, n - at) for n, at in zip(self._shape, place, strict=True)]
                sums = np.zeros((len(rates), *size), np.float32)
                self._open[place] = sums, np.zeros(size, np.float32)
                self.most_open = max(self.most_open, len(self._open))
            sums, weights = self._open[place]
            rows = _overlap(row0, place[0], sums.shape[1])
            cols = _overlap(col0, place[1], sums.shape[2])
            weight = self._window[rows[0], cols[0]]
            sums[:, rows[1], cols[1]] += rates[:, rows[0], cols[0]] * weight
            weights[rows[1], cols[1]] += weight
            self._missing[place] -= 1
            if not self._missing[place]:
                self._finish(place)

    def _finish(self, place: Place) -> None:
        sums, weights = self._open.pop(place)
        there = weights > 0
        sums /= np.where(there, weights, np.float32(np.nan))
        self.n_left_out += left_out(sums, there)
        self._write(*place, sums, there)

    def _touched(self, row0: int, col0: int) -> list[Place]:
        """First bins of the blocks that a patch overlaps."""
        axes = [
            range(
                start // BLOCK_BINS * BLOCK_BINS,
                min(start + PATCH_BINS, n),
                BLOCK_BINS,
            )
            for start, n in zip((row0, col0), self._shape, strict=True)
        ]
        return [(row, col) for row in axes[0] for col in axes[1]]


def left_out(rates: Float32Array, there: BoolArray) -> int:
    """Number of bins of a block that lie in a patch and have no rate."""
    return int((np.isnan(rates.sum(axis=0)) & there).sum())


def _n_bins(patches: PatchTable, shape: tuple[int, int]) -> int:
    """Number of bins in a patch or several, counted on 8 µm cells, on which all patches begin."""
    cells: BoolArray = np.zeros([n // CELL_BINS for n in shape], bool)
    side = PATCH_BINS // CELL_BINS
    for row, col in zip(patches.row0 // CELL_BINS, patches.col0 // CELL_BINS, strict=True):
        cells[row : row + side, col : col + side] = True
    return int(cells.sum()) * CELL_BINS**2


def _overlap(patch: int, block: int, size: int) -> tuple[slice, slice]:
    """Bins that a patch and a block share along one axis: in the patch, and in the block."""
    first, last = max(patch, block), min(patch + PATCH_BINS, block + size)
    return slice(first - patch, last - patch), slice(first - block, last - block)

"""The H&E image of a Zarr folder: an RGB pyramid whose finest level the caller writes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import zarr

from virchow_st.field.ngff import Folder, remove_chunk
from virchow_st.types import UInt8Array

CHUNK_PX = 512
_SMALLEST_PX = 1024  # no further level once the longer side is below


@dataclass(frozen=True, eq=False)
class Picture:
    """The pyramid in ``images/he``.

    Attributes:
        levels: (3, H, W) uint8 each, finest first, padded with white.
        height, width: of the finest level without the padding.
        mpp: of the finest level.
    """

    levels: list[zarr.Array]
    height: int
    width: int
    mpp: float

    def write(self, top: int, rgb: UInt8Array) -> None:
        """Write a band of the finest level from row ``top`` on: (h, W, 3) uint8 RGB."""
        self.levels[0][:, top : top + len(rgb), : rgb.shape[1]] = np.moveaxis(rgb, 2, 0)

    def remove_band(self, top: int) -> None:
        """Remove the chunks of a band from the disk, whatever state their files are in."""
        for left in range(0, self.levels[0].shape[2], CHUNK_PX):
            remove_chunk(self.levels[0], 0, top, left)

    def read_band(self, top: int, rows: int) -> UInt8Array:
        """A band of the finest level as it lies on disk, (3, rows, W) uint8 with its padding."""
        return np.asarray(self.levels[0][:, top : top + rows])

    def fill_coarser(self) -> None:
        """Compute each coarser level from the one before, after the finest has been written."""
        for fine, coarse in pairwise(self.levels):
            _halve(fine, coarse)

    def read(self, level: int) -> tuple[UInt8Array, float]:
        """A level as (H, W, 3) uint8 RGB without the padding, and its µm/px."""
        side = 1 << level
        pixels = self.levels[level][:, : -(-self.height // side), : -(-self.width // side)]
        return np.ascontiguousarray(np.moveaxis(np.asarray(pixels), 0, 2)), self.mpp * side

    def read_small(self, longest: int) -> tuple[UInt8Array, float]:
        """`read` the finest level with no side above ``longest`` px, or the coarsest."""
        sides = [max(array.shape[1:]) for array in self.levels]
        fitting = [i for i, side in enumerate(sides) if side <= longest]
        return self.read(fitting[0] if fitting else len(sides) - 1)


def add_picture(
    folder: Folder, height: int, width: int, mpp: float, fewest_levels: int = 1
) -> Picture:
    """Add ``images/he``, initially white, with levels until the longer side is below 1024 px.

    Args:
        folder: the Zarr folder to write to.
        height, width: of the finest level; white padding makes every level halve evenly.
        mpp: of the finest level.
        fewest_levels: smallest number of levels.
    """
    n_levels = fewest_levels
    while max(width, height) >> (n_levels - 1) >= _SMALLEST_PX:
        n_levels += 1
    even = 1 << (n_levels - 1)
    shape = -(-height // even) * even, -(-width // even) * even
    levels = folder.add_image(
        "he", ("r", "g", "b"), shape, mpp, n_levels, dtype="uint8", chunk=CHUNK_PX, fill=255,
        brightest=255,
    )  # fmt: skip
    return Picture(levels, height, width, mpp)


def _halve(fine: zarr.Array, coarse: zarr.Array) -> None:
    """Fill a level with the means of 2 × 2 pixels of the finer level, chunk by chunk."""
    _, height, width = coarse.shape
    for y in range(0, height, CHUNK_PX):
        for x in range(0, width, CHUNK_PX):
            h, w = min(CHUNK_PX, height - y), min(CHUNK_PX, width - x)
            source = np.moveaxis(fine[:, 2 * y : 2 * (y + h), 2 * x : 2 * (x + w)], 0, 2)
            mean = cv2.resize(np.ascontiguousarray(source), (w, h), interpolation=cv2.INTER_AREA)
            coarse[:, y : y + h, x : x + w] = np.moveaxis(mean, 2, 0)

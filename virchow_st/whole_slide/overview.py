"""The slide's own picture in the output: a pyramid at about 1 µm/px, in one pass over the file."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import zarr

from virchow_st.slide.image import SlideImage
from virchow_st.types import UInt8Array
from virchow_st.whole_slide.ngff import Folder

OVERVIEW_LEVEL = 3
"""Where tissue is looked for: 4 to 10 µm/px."""
_FINEST_UM = 1.05  # not 1: a scanner's 40x is 0.25 µm/px within a few per cent
_CHUNK_PX = 512
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


def write_picture(folder: Folder, image: SlideImage, mpp: float) -> Picture:
    """Write ``images/he`` band by band, and each coarser level from the one before.

    The finest level averages whole squares of pixels, as many a side as make 1.05 µm or less
    (mpp 0.25 → 4, so 1 µm/px; mpp 0.274 → 3, so 0.82). White pads the sides to what halves evenly.

    Args:
        folder: where to.
        image: the slide.
        mpp: of its pixels.

    Raises:
        SlideError: the image file is damaged.
    """
    wanted = max(1.0, _FINEST_UM / mpp)
    step = image.level_factor(wanted)
    factor = step * int(wanted / step)
    width, height = -(-image.width // factor), -(-image.height // factor)
    n_levels = OVERVIEW_LEVEL + 1
    while max(width, height) >> (n_levels - 1) >= _SMALLEST_PX:
        n_levels += 1
    even = 1 << (n_levels - 1)
    shape = -(-height // even) * even, -(-width // even) * even
    levels = folder.add_image(
        "he", ("r", "g", "b"), shape, factor * mpp, n_levels, dtype="uint8", chunk=_CHUNK_PX,
        fill=255, brightest=255,
    )  # fmt: skip
    for top in range(0, height, _CHUNK_PX):
        rows = min(_CHUNK_PX, height - top)
        rgb, _, _ = image.read_region(0, top * factor, image.width, rows * factor, factor)
        levels[0][:, top : top + rows, :width] = np.moveaxis(rgb, 2, 0)
    for fine, coarse in pairwise(levels):
        _halve(fine, coarse)
    return Picture(levels, height, width, factor * mpp)


def _halve(fine: zarr.Array, coarse: zarr.Array) -> None:
    """Fill a level with the means of 2 × 2 pixels of the one before, chunk by chunk."""
    _, height, width = coarse.shape
    for y in range(0, height, _CHUNK_PX):
        for x in range(0, width, _CHUNK_PX):
            h, w = min(_CHUNK_PX, height - y), min(_CHUNK_PX, width - x)
            source = np.moveaxis(fine[:, 2 * y : 2 * (y + h), 2 * x : 2 * (x + w)], 0, 2)
            mean = cv2.resize(np.ascontiguousarray(source), (w, h), interpolation=cv2.INTER_AREA)
            coarse[:, y : y + h, x : x + w] = np.moveaxis(mean, 2, 0)

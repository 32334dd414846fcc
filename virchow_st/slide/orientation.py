"""Applies the Orientation tag of TIFF and EXIF: rotates or mirrors the stored pixels."""

from __future__ import annotations

import numpy as np

from virchow_st.slide.backends import Pixels
from virchow_st.types import Array, BoolArray, UInt8Array

# For each value of the tag: swap rows and columns first, then reverse rows, then reverse columns.
_STEPS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def oriented(array: Array, orientation: int) -> Array:
    """Rotate or mirror an array (rows, columns, …) as its Orientation tag asks.

    Example:
        >>> oriented(np.array([[1, 2], [3, 4]]), 6).tolist()  # 90° clockwise
        [[3, 1], [4, 2]]
    """
    swap, reverse_rows, reverse_cols = _STEPS[orientation]
    if swap:
        array = array.swapaxes(0, 1)
    return array[:: -1 if reverse_rows else 1, :: -1 if reverse_cols else 1]


class OrientedPixels:
    """A view of `Pixels` with their Orientation tag applied.

    A reduced level is left out if its size is not exactly the finest level's divided by its factor:
    reversing an axis would shift it by part of a pixel.
    """

    def __init__(self, pixels: Pixels, orientation: int) -> None:
        self.name = pixels.name
        self._pixels, self._orientation = pixels, orientation
        swap, reverse_rows, reverse_cols = _STEPS[orientation]
        if swap:  # which stored axes are reversed
            reverse_rows, reverse_cols = reverse_cols, reverse_rows
        width, height = pixels.level_sizes[0]
        self._levels = [
            level
            for level, (w, h) in enumerate(pixels.level_sizes)
            if (not reverse_cols or width % w == 0) and (not reverse_rows or height % h == 0)
        ]
        sizes = [pixels.level_sizes[level] for level in self._levels]
        self.level_sizes = [(h, w) if swap else (w, h) for w, h in sizes]

    def read(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> tuple[UInt8Array, BoolArray | None]:
        """As `Pixels.read`, in the oriented frame."""
        swap, reverse_rows, reverse_cols = _STEPS[self._orientation]
        w, h = self.level_sizes[level]
        if reverse_cols:
            x = w - x - width
        if reverse_rows:
            y = h - y - height
        if swap:
            x, y, width, height = y, x, height, width
        rgb, opaque = self._pixels.read(self._levels[level], x, y, width, height)
        turned = np.ascontiguousarray(oriented(rgb, self._orientation))
        return turned, None if opaque is None else oriented(opaque, self._orientation)

    def close(self) -> None:
        """Do nothing: the file is closed by the pixels that this is a view of."""

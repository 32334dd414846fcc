"""Finds marks of blue, green and black pens on an overview of an H&E slide.

Haematoxylin absorbs red and green about equally and some blue; eosin hardly absorbs red. Blue ink
lets blue through and absorbs red, green ink absorbs clearly more red than green, and black ink
absorbs all colours more strongly than tissue does at low magnification. Ink on tissue adds to what
the tissue absorbs. Red ink absorbs as eosin and blood do and is not found.

Where red is absorbed at all (optical density above 0.25), the tissue of six slides (two public
sections of breast, four simulated ones) had a ratio of blue to red of at least 0.39, and of red to
green of at most 1.40; the least of the three densities was at most 0.58.
"""

from __future__ import annotations

import cv2
import numpy as np

from virchow_st.slide.tissue import white_point, without_small
from virchow_st.types import BoolArray, UInt8Array

_RED_OVER_GREEN = 1.45  # green ink, and blue ink on glass, absorb more red, relative to green
_BLUE_OVER_RED = 0.35  # blue ink absorbs less blue, relative to red
_LEAST_RED = 0.25  # optical density below which the ratios are noise
_BLACK = 0.8  # black ink absorbs at least this in all three colours
_SMOOTHING_UM = 24.0
_SMALLEST_PIECE_UM2 = 20_000.0  # a disc of 160 µm diameter; smaller pieces are pigment and debris


def find_ink(overview: UInt8Array, um_per_px: float) -> BoolArray:
    """Find pen marks.

    Args:
        overview: (H, W, 3) uint8 RGB of the whole slide, at 4 to 16 µm/px.
        um_per_px: side of its pixels, µm.

    Returns:
        (H, W) bool, True for ink.

    Example:
        >>> overview = np.full((100, 100, 3), 240, np.uint8)
        >>> overview[20:60, 20:60] = 200, 120, 180  # tissue
        >>> overview[70:80] = 40, 70, 190  # a blue line of 80 µm
        >>> int(find_ink(overview, um_per_px=8.0).sum())
        1000
    """
    side = max(3, round(_SMOOTHING_UM / um_per_px) // 2 * 2 + 1)
    smooth = cv2.medianBlur(overview, side)
    white = white_point(overview)
    tables = [np.log10((white[c] + 1) / (np.arange(256) + 1.0)).clip(0, None) for c in range(3)]
    red, green, blue = (tables[c].astype(np.float32)[smooth[..., c]] for c in range(3))
    coloured = (red > _RED_OVER_GREEN * green) | (blue < _BLUE_OVER_RED * red)
    coloured &= red > _LEAST_RED
    black = np.minimum(np.minimum(red, green), blue) > _BLACK
    return without_small(coloured | black, _SMALLEST_PIECE_UM2 / um_per_px**2)

"""Finds the tissue on an H&E slide by Otsu's threshold (1979) on colour saturation.

After correction for the slide's white point, which removes the lamp's colour, glass is grey and
H&E-stained tissue is not. The threshold is kept between limits, because Otsu's method divides any
image in two: bare glass by its noise, and an image full of tissue by the strength of its stain.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from skimage.filters import threshold_otsu

from virchow_st.errors import SlideError
from virchow_st.types import BoolArray, Float64Array, Int64Array, UInt8Array

LIMITS = (10, 20)
"""Lowest and highest threshold on saturation (0 to 255): glass has less than 10, pale stroma and
mucus have 20 and more."""

_WHITE_PERCENTILE = 99.5
_DARKEST_WHITE = 128  # lower bound of the white point, for slides without a bright area

_DARKEST = 64  # lower bound of brightness in saturation, which is noise in ink, folds and black
_SMOOTHING_UM = 24.0
_SMALLEST_PIECE_UM2 = 20_000.0  # a disc of 160 µm diameter; smaller pieces are dust and debris
_LARGEST_HOLE_UM2 = 20_000.0  # smaller holes are lumina, vessels and fat cells


@dataclass(frozen=True, eq=False)
class Tissue:
    """A slide's tissue at low magnification.

    Attributes:
        mask: (H, W) bool, True for tissue.
        histogram: (256,) int64 number of pixels per saturation value, after smoothing.
        threshold: saturation, 0 to 255, above which a pixel is tissue.
    """

    mask: BoolArray
    histogram: Int64Array
    threshold: int


def find_tissue(overview: UInt8Array, um_per_px: float, name: str = "image") -> Tissue:
    """Find the tissue of a slide.

    Args:
        overview: (H, W, 3) uint8 RGB of the whole slide, best at 4 to 16 µm/px.
        um_per_px: side of its pixels, µm.
        name: the slide's name, for the error message.

    Raises:
        SlideError: there is no tissue.

    Example:
        >>> overview = np.full((100, 100, 3), 240, np.uint8)
        >>> overview[20:60, 20:60] = 200, 120, 180
        >>> int(find_tissue(overview, um_per_px=8.0).mask.sum())
        1596
    """
    saturation = smooth_saturation(overview, um_per_px)
    histogram = np.bincount(saturation.ravel(), minlength=256)
    values = np.flatnonzero(histogram)
    otsu = threshold_otsu(hist=(histogram, np.arange(256))) if len(values) > 1 else values[0]
    threshold = int(np.clip(otsu, *LIMITS))
    area_um2 = um_per_px**2
    mask = without_small(saturation > threshold, _SMALLEST_PIECE_UM2 / area_um2)
    mask = ~without_small(~mask, _LARGEST_HOLE_UM2 / area_um2)
    if not mask.any():
        raise SlideError(
            f"{name}: expected tissue; nothing of {_SMALLEST_PIECE_UM2:,.0f} µm² is more saturated "
            f"than {threshold} of 255; is it an H&E image, and --mpp right?"
        )
    return Tissue(mask, histogram, threshold)


def smooth_saturation(overview: UInt8Array, um_per_px: float) -> UInt8Array:
    """Colour saturation of a slide, corrected for its white point and smoothed.

    Saturation is defined as in HSV; a median filter of 24 µm removes noise.

    Args:
        overview: (H, W, 3) uint8 RGB of the whole slide.
        um_per_px: side of its pixels, µm.

    Returns:
        (H, W) uint8.
    """
    white = white_point(overview).astype(np.float32)
    balanced = [
        np.minimum(overview[..., c] * (np.float32(255) / white[c]), np.float32(255))
        for c in range(3)
    ]
    high = np.maximum(np.maximum(balanced[0], balanced[1]), balanced[2])
    low = np.minimum(np.minimum(balanced[0], balanced[1]), balanced[2])
    share = (high - low) * np.float32(255) / np.maximum(high, np.float32(_DARKEST))
    side = max(3, round(_SMOOTHING_UM / um_per_px) // 2 * 2 + 1)
    return np.asarray(cv2.medianBlur(np.rint(share).astype(np.uint8), side), np.uint8)


def white_point(overview: UInt8Array) -> Float64Array:
    """The colour of the slide's glass: the 99.5th percentile of each colour.

    Pure white pixels are left out, because scanners fill unscanned areas with white.

    Args:
        overview: (H, W, 3) uint8 RGB.

    Returns:
        (3,) float64, at least 128 each.
    """
    scanned = overview[(overview != 255).any(axis=2)]
    if not len(scanned):
        return np.full(3, 255.0)
    return np.maximum(np.percentile(scanned, _WHITE_PERCENTILE, axis=0), _DARKEST_WHITE)


def without_small(mask: BoolArray, smallest_px: float) -> BoolArray:
    """Remove connected pieces with fewer pixels."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    keep = statistics[:, cv2.CC_STAT_AREA] >= smallest_px
    keep[0] = False
    return np.asarray(keep[labels], bool)

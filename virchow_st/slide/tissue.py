"""Where the tissue is on an H&E slide: Otsu's threshold on colour saturation.

Glass is grey and H&E is not, whatever the brightness of the lamp, once the slide's white point has
taken out the lamp's colour. The threshold is kept between limits, because Otsu's method divides any
picture in two: one of bare glass by its noise, one full of tissue by how strongly it is stained.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from skimage.filters import threshold_otsu

from virchow_st.errors import SlideError
from virchow_st.types import BoolArray, Float64Array, Int64Array, UInt8Array

LIMITS = (10, 20)
"""Lowest and highest threshold, of 255. Glass lies below 10; pale stroma and mucus from 20 on."""

_WHITE_PERCENTILE = 99.5
_DARKEST_WHITE = 128  # a slide without a bright spot has no white point

_DARKEST = 64  # what is darker is ink, a fold or the scanner's black, where saturation is noise
_SMOOTHING_UM = 24.0
_SMALLEST_PIECE_UM2 = 20_000.0  # a disc of 160 µm; smaller are dust and debris
_LARGEST_HOLE_UM2 = 20_000.0  # smaller are lumina, vessels and fat cells


@dataclass(frozen=True, eq=False)
class Tissue:
    """A slide's tissue at low magnification.

    Attributes:
        mask: (H, W) bool, True = tissue.
        histogram: (256,) pixels by saturation, after smoothing.
        threshold: saturation above which a pixel is tissue, of 255.
    """

    mask: BoolArray
    histogram: Int64Array
    threshold: int


def find_tissue(overview: UInt8Array, um_per_px: float, name: str = "image") -> Tissue:
    """Tell tissue from glass.

    Args:
        overview: (H, W, 3) uint8 RGB of the whole slide, best at 4 to 16 µm/px.
        um_per_px: side of its pixels, µm.
        name: of the slide, for the error.

    Raises:
        SlideError: there is no tissue.
    """
    saturation = smooth_saturation(overview, um_per_px)
    histogram = np.bincount(saturation.ravel(), minlength=256)
    values = np.flatnonzero(histogram)
    otsu = threshold_otsu(hist=(histogram, np.arange(256))) if len(values) > 1 else values[0]
    threshold = int(np.clip(otsu, *LIMITS))
    area_um2 = um_per_px**2
    mask = _without_small(saturation > threshold, _SMALLEST_PIECE_UM2 / area_um2)
    mask = ~_without_small(~mask, _LARGEST_HOLE_UM2 / area_um2)
    if not mask.any():
        raise SlideError(
            f"{name}: expected tissue; nothing of {_SMALLEST_PIECE_UM2:,.0f} µm² is more saturated "
            f"than {threshold} of 255; is it an H&E image, and --mpp right?"
        )
    return Tissue(mask, histogram, threshold)


def smooth_saturation(overview: UInt8Array, um_per_px: float) -> UInt8Array:
    """Saturation as in HSV, 0 to 255, of (H, W, 3) RGB against its white point; (H, W).

    A median filter of 24 µm takes out noise.
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
    """(3,) what the slide's glass looks like: the 99.5th percentile of each colour.

    Pure white counts for nothing, as scanners fill in what they did not scan.
    """
    scanned = overview[(overview != 255).any(axis=2)]
    if not len(scanned):
        return np.full(3, 255.0)
    return np.maximum(np.percentile(scanned, _WHITE_PERCENTILE, axis=0), _DARKEST_WHITE)


def _without_small(mask: BoolArray, smallest_px: float) -> BoolArray:
    """Drop connected pieces of fewer pixels."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    keep = statistics[:, cv2.CC_STAT_AREA] >= smallest_px
    keep[0] = False
    return np.asarray(keep[labels], bool)

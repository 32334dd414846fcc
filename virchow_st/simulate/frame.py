"""The frame of a simulated photograph: a homography from the bin lattice to full-resolution pixels.

Bin coordinates are centre-based (an integer is a bin's centre), pixel coordinates corner-based
(pixel ``i`` spans ``[i, i+1)``). OpenCV puts integers at pixel centres, half a pixel off.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from virchow_st.simulate.morphology import MARGIN_BINS, PX_PER_BIN
from virchow_st.types import BIN_UM, Array, Float32Array, Float64Array

_OFF_IMAGE_BINS = 5
_PERSPECTIVE = 1e-3


@dataclass(frozen=True)
class SlideFrame:
    """Position of the bins in the simulated photograph.

    ``homography`` (3, 3) float64 maps (col, row, 1) to (x, y) full-res px; ``width`` and ``height``
    of the photograph in px; ``mpp`` µm per pixel.
    """

    homography: Float64Array
    width: int
    height: int
    mpp: float

    def to_px(self, cols: Array, rows: Array) -> tuple[Float64Array, Float64Array]:
        """Full-resolution ``x, y`` px of bin coordinates ``cols, rows`` (arrays of equal shape)."""
        h = self.homography
        w = h[2, 0] * cols + h[2, 1] * rows + h[2, 2]
        x: Float64Array = (h[0, 0] * cols + h[0, 1] * rows + h[0, 2]) / w
        y: Float64Array = (h[1, 0] * cols + h[1, 1] * rows + h[1, 2]) / w
        return x, y

    def warp(self, canvas: Float32Array) -> Float32Array:
        """Resample a tissue canvas (side, side, n) into the photograph (height, width, n)."""
        to_bin = np.array(
            [
                [1 / PX_PER_BIN, 0, 0.5 / PX_PER_BIN - 0.5 - MARGIN_BINS],
                [0, 1 / PX_PER_BIN, 0.5 / PX_PER_BIN - 0.5 - MARGIN_BINS],
                [0, 0, 1],
            ]
        )
        to_opencv = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
        warped: Float32Array = cv2.warpPerspective(
            canvas,
            to_opencv @ self.homography @ to_bin,
            (self.width, self.height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=0,
        )
        return warped


def draw_frame(rng: np.random.Generator, bins: int, mirrored: bool, overhang: bool) -> SlideFrame:
    """Draw a random frame: quarter turns plus a few degrees, a slight perspective, a mirror.

    Args:
        rng: Source of random numbers.
        bins: Side of the capture area in bins.
        mirrored: Whether the photograph is mirrored.
        overhang: Whether the photograph ends a few bins inside the capture area, as on some real
            slides, so that some bins lie outside of the image.
    """
    mpp = rng.uniform(0.46, 0.55)
    degrees = 90 * rng.integers(4) + rng.choice([-1, 1]) * rng.uniform(0.8, 4.0)
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    scale = BIN_UM / mpp
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    flip = np.diag([-1.0 if mirrored else 1.0, 1.0, 1.0])
    tilt = np.eye(3)
    # As on real slides, of the order of 1e-3 across the capture area.
    tilt[2, :2] = _PERSPECTIVE / bins * rng.uniform(0.5, 1.0, 2) * rng.choice([-1, 1], 2)
    centre = np.array([[1, 0, 0.5 - bins / 2], [0, 1, 0.5 - bins / 2], [0, 0, 1]])
    homography = np.diag([scale, scale, 1.0]) @ turn @ flip @ tilt @ centre

    edge = np.array([-0.5 - MARGIN_BINS, bins - 0.5 + MARGIN_BINS])
    left, right, top, bottom = _bounds(homography, edge)
    if overhang:
        left = _bounds(homography, np.array([-0.5, bins - 0.5]))[0] + _OFF_IMAGE_BINS * scale
    shift = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]])
    homography = shift @ homography
    return SlideFrame(
        homography / homography[2, 2],
        width=int(np.ceil(right - left)),
        height=int(np.ceil(bottom - top)),
        mpp=mpp,
    )


def _bounds(homography: Float64Array, edge: Float64Array) -> tuple[float, float, float, float]:
    """Left, right, top, bottom in px of the square with sides at ``edge`` (bin coordinates)."""
    cols, rows = np.meshgrid(edge, edge)
    x, y = SlideFrame(homography, 0, 0, 1.0).to_px(cols, rows)
    return float(x.min()), float(x.max()), float(y.min()), float(y.max())

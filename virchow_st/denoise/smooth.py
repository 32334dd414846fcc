"""Gaussian smoothing over the tissue bins of a slide, with its edges and holes.

Letters: n tissue bins, (R, C) bins of the lattice.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from threading import Lock

import cv2
import numpy as np

from virchow_st.types import BIN_UM, Array, Float32Array, Int64Array

_KEPT_WIDTHS = 10
_REACH = 4.0  # standard deviations at which the Gaussian is cut off


class Smoother:
    """Smooths maps of UMIs into maps of rates over tissue bins.

    The smoothed UMIs are divided by the smoothed exposure (Nadaraya, Theory Probab. Appl. 9, 1964,
    141), so that a constant rate stays constant up to the edge of the tissue and of every hole.
    They are then scaled by one number for the whole map so that their sum over the tissue is that
    of the UMIs. Bins outside tissue neither give nor take.

    Args:
        place: (n,) int64, ``row * C + col`` of each tissue bin.
        shape: (R, C) of the lattice.

    Example:
        A row of four tissue bins beside a hole; the constant rate stays:

        >>> smoother = Smoother(np.array([0, 1, 3, 4]), (1, 5))
        >>> smoother.smoothed(np.full(4, 2.0, np.float32), width_um=4.0).round(6).tolist()
        [2.0, 2.0, 2.0, 2.0]
        >>> x = smoother.smoothed(np.array([8, 0, 0, 0], np.float32), width_um=2.0)
        >>> bool(x[0] > x[1] > x[2] > x[3]), round(float(x.sum()), 5)
        (True, 8.0)
    """

    def __init__(self, place: Int64Array, shape: tuple[int, int]) -> None:
        self._place, self._shape = place, shape
        self._lock = Lock()
        self._exposures: OrderedDict[float, Float32Array] = OrderedDict()  # by width, last used

    def smoothed(self, umis: Array, width_um: float) -> Float32Array:
        """Rates per tissue bin, (n,) float32, from UMIs (n,) ≥ 0.

        Args:
            umis: UMIs of each tissue bin.
            width_um: Standard deviation of the Gaussian, µm; 0 returns the UMIs.
        """
        if width_um <= 0:
            return umis.astype(np.float32)
        rate = self._blurred(umis.astype(np.float32), width_um) / self._exposure(width_um)
        total = rate.sum(dtype=np.float64)
        if total > 0:
            rate *= np.float32(umis.sum(dtype=np.float64) / total)
        return rate

    def _exposure(self, width_um: float) -> Float32Array:
        """The smoothed exposure; that of the widths used last is kept."""
        with self._lock:
            if width_um not in self._exposures:
                ones = np.ones(len(self._place), np.float32)
                self._exposures[width_um] = self._blurred(ones, width_um)
            self._exposures.move_to_end(width_um)
            if len(self._exposures) > _KEPT_WIDTHS:
                self._exposures.popitem(last=False)
            return self._exposures[width_um]

    def _blurred(self, values: Float32Array, width_um: float) -> Float32Array:
        grid = np.zeros(self._shape, np.float32)
        grid.ravel()[self._place] = values
        kernel = gaussian(width_um / BIN_UM)
        # Unlike cv2.GaussianBlur, this does not divide the map among threads.
        grid = cv2.sepFilter2D(grid, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_CONSTANT)
        blurred: Float32Array = grid.ravel()[self._place]
        return blurred

    def on_lattice(self, values: Array) -> Float32Array:
        """Values of tissue bins (n,) as a map (R, C) float32, 0 elsewhere."""
        grid = np.zeros(self._shape, np.float32)
        grid.ravel()[self._place] = values
        return grid


def gaussian(sd: float) -> Float32Array:
    """Weights of a Gaussian with a standard deviation in bins, cut off at four, that sum to 1.

    >>> weights = gaussian(0.5)
    >>> len(weights), round(float(weights[2] / weights[1]), 2), round(float(weights.sum()), 6)
    (5, 7.39, 1.0)
    """
    at = np.arange(-(reach := math.ceil(_REACH * sd)), reach + 1)
    weights = np.exp(-0.5 * (at / sd) ** 2)
    return np.asarray(weights / weights.sum(), np.float32)

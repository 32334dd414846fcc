"""Gaussian smoothing over the tissue bins of a slide, with its edges and holes.

Letters: n tissue bins, (R, C) bins of the lattice.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from threading import Lock

import cv2
import numpy as np

from virchow_st.types import BIN_UM, Array, BoolArray, Float32Array, Float64Array, Int64Array

REACH = 4.0
"""Standard deviations at which the Gaussian is cut off."""
_KEPT_WIDTHS = 10
_LEAST = np.float32(1e-12)
_LEAST_REACHED = 1e-3  # of the Gaussian's weight, below which a bin counts as out of reach


class Smoother:
    """Smooths maps of UMIs into maps of rates over the observed tissue bins.

    The smoothed UMIs are divided by the smoothed exposure (Nadaraya, Theory Probab. Appl. 9, 1964,
    141), so that a constant rate stays constant up to the edge of the tissue and of every hole.
    They are then scaled by one number for the whole map so that exposure times rate has the sum of
    the UMIs. Bins outside tissue, and those that failed, neither give nor take.

    Args:
        place: (n,) int64, ``row * C + col`` of each observed tissue bin.
        shape: (R, C) of the lattice.
        exposure: (n,) > 0, of each bin relative to the others; 1 in all of them if None.

    Example:
        A row of four tissue bins beside a hole; the constant rate stays:

        >>> smoother = Smoother(np.array([0, 1, 3, 4]), (1, 5))
        >>> smoother.smoothed(np.full(4, 2.0, np.float32), width_um=4.0).round(6).tolist()
        [2.0, 2.0, 2.0, 2.0]
        >>> x = smoother.smoothed(np.array([8, 0, 0, 0], np.float32), width_um=2.0)
        >>> bool(x[0] > x[1] > x[2] > x[3]), round(float(x.sum()), 5)
        (True, 8.0)

        With a guide that rises fourfold, the rate does so too, whatever the width:

        >>> umis, guide = np.array([1, 1, 4, 4], np.float32), np.array([1, 1, 4, 4], np.float32)
        >>> smoother.smoothed(umis, 8.0, guide).round(6).tolist()
        [1.0, 1.0, 4.0, 4.0]
    """

    def __init__(
        self, place: Int64Array, shape: tuple[int, int], exposure: Float64Array | None = None
    ) -> None:
        self.place, self._shape = place, shape
        self.exposure: Float32Array = (
            np.ones(len(place), np.float32) if exposure is None else exposure.astype(np.float32)
        )
        self._lock = Lock()
        self._exposures: OrderedDict[float, Float32Array] = OrderedDict()  # by width, last used

    def smoothed(
        self, umis: Array, width_um: float, guide: Float32Array | None = None
    ) -> Float32Array:
        """Rates per tissue bin, (n,) float32, from UMIs (n,) ≥ 0.

        Args:
            umis: UMIs of each tissue bin.
            width_um: Standard deviation of the Gaussian, µm; 0 returns the UMIs over the exposure.
            guide: (n,) > 0, a map whose structure the rate has within the Gaussian: the ratio of
                the rate to it is what is smoothed. None for none.
        """
        umis = umis.astype(np.float32)
        if width_um <= 0:
            return np.asarray(umis / self.exposure)
        rate = self.blurred(umis, width_um)
        if guide is None:
            rate /= self._exposure(width_um)
        else:
            rate *= guide
            rate /= np.maximum(self.blurred(self.exposure * guide, width_um), _LEAST)
        total = float(rate @ self.exposure)
        if total > 0:
            rate *= np.float32(umis.sum(dtype=np.float64) / total)
        return rate

    def filled(
        self,
        rate: Float32Array,
        width_um: float,
        place: Int64Array,
        guide: tuple[Float32Array, Float32Array] | None = None,
    ) -> Float32Array:
        """Rates (m,) float32 of bins that were not observed, from the observed ones around them.

        A bin takes the weighted mean of the observed rates within the Gaussian, with their
        exposure as weight. Where a bin has none within it, the Gaussian is widened twofold, up to
        the whole slide.

        Args:
            rate: (n,) rates of the observed bins.
            width_um: Standard deviation of the Gaussian to begin with, µm > 0.
            place: (m,) ``row * C + col`` of the bins to fill.
            guide: Of the observed (n,) and of the other bins (m,), as for `smoothed`.
        """
        seen, missing = guide or (np.float32(1), np.ones(len(place), np.float32))
        found = np.zeros(len(place), np.float32)
        open_: BoolArray = np.ones(len(place), bool)
        while open_.any():
            if width_um > BIN_UM * max(self._shape):
                total = float(self.exposure @ (seen * np.ones_like(rate)))
                found[open_] = missing[open_] * np.float32(float(self.exposure @ rate) / total)
                break
            at = place[open_]
            weight = self._blurred_map(self.exposure * seen, width_um).ravel()[at]
            value = self._blurred_map(self.exposure * rate, width_um).ravel()[at]
            # A thousandth of what a bin amid observed ones has.
            reached = self._blurred_map(self.exposure, width_um).ravel()[at] > _LEAST_REACHED
            chosen = np.flatnonzero(open_)[reached]
            ratio = value[reached] / np.maximum(weight[reached], _LEAST)
            found[chosen] = missing[chosen] * ratio
            open_[chosen] = False
            width_um *= 2
        return found

    def _exposure(self, width_um: float) -> Float32Array:
        """The smoothed exposure; that of the widths used last is kept."""
        with self._lock:
            if width_um not in self._exposures:
                self._exposures[width_um] = self.blurred(self.exposure, width_um)
            self._exposures.move_to_end(width_um)
            if len(self._exposures) > _KEPT_WIDTHS:
                self._exposures.popitem(last=False)
            return self._exposures[width_um]

    def blurred(self, values: Float32Array, width_um: float) -> Float32Array:
        """The Gaussian's weighted sum of the values (n,) around each bin, 0 beside the tissue."""
        blurred: Float32Array = self._blurred_map(values, width_um).ravel()[self.place]
        return blurred

    def _blurred_map(self, values: Float32Array, width_um: float) -> Float32Array:
        grid = self.on_lattice(values)
        kernel = gaussian(width_um / BIN_UM)
        # Unlike cv2.GaussianBlur, this does not divide the map among threads.
        return np.asarray(
            cv2.sepFilter2D(grid, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_CONSTANT)
        )

    def numbers(self) -> Array:
        """(R, C) int32, the number of the tissue bin at each place; -1 for none."""
        grid = np.full(self._shape, -1, np.int32)
        grid.ravel()[self.place] = np.arange(len(self.place))
        return grid

    def on_lattice(self, values: Array) -> Float32Array:
        """Values of tissue bins (n,) as a map (R, C) float32, 0 elsewhere."""
        grid = np.zeros(self._shape, np.float32)
        grid.ravel()[self.place] = values
        return grid


def gaussian(sd: float, reach_sd: float = REACH) -> Float32Array:
    """Weights of a Gaussian with a standard deviation in bins, cut off at some, that sum to 1.

    >>> weights = gaussian(0.5)
    >>> len(weights), round(float(weights[2] / weights[1]), 2), round(float(weights.sum()), 6)
    (5, 7.39, 1.0)
    """
    at = np.arange(-(reach := math.ceil(reach_sd * sd)), reach + 1)
    weights = np.exp(-0.5 * (at / sd) ** 2)
    return np.asarray(weights / weights.sum(), np.float32)

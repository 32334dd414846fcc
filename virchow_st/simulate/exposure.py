"""Sequencing depth of a simulated slide: efficiency of slide, rows and columns, and drift."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from virchow_st.simulate.fields import smooth_noise
from virchow_st.types import BIN_UM, BoolArray, Float32Array, Float64Array

TOP_GENES = 50
_TOP_UMI = 2.5
_STRIPE_SD = 0.1
_LOCAL_SD, _LOCAL_UM = 0.1, 60.0


@dataclass(frozen=True)
class Exposure:
    """What multiplies all rates of a bin and has nothing to do with its tissue.

    A bin's exposure is ``slide * rows[row] * cols[col]``. ``slide`` is the slide's sequencing
    depth; only its ratio between slides has a meaning. ``rows`` (R,) and ``cols`` (C,) float64 are
    the efficiencies of rows and columns of bins, with means of about 1.
    """

    slide: float
    rows: Float64Array
    cols: Float64Array

    def __mul__(self, other: Exposure) -> Exposure:
        """Exposure where both act."""
        return Exposure(self.slide * other.slide, self.rows * other.rows, self.cols * other.cols)

    def map(self) -> Float64Array:
        """Exposure of every bin, (R, C) float64.

        Example:
            >>> Exposure(2.0, np.array([1.0, 0.5]), np.array([1.0, 1.5])).map().tolist()
            [[2.0, 3.0], [1.0, 1.5]]
        """
        return self.slide * self.rows[:, None] * self.cols


def draw_depth(
    rng: np.random.Generator, programmes: Float32Array, loadings: Float32Array, tissue: BoolArray
) -> tuple[Float32Array, Exposure]:
    """Draw the sequencing depth (R, C) float32 with row and column stripes and smooth local drift.

    It is scaled so that the `TOP_GENES` most abundant genes together have `_TOP_UMI` UMIs in an
    average tissue bin, so that 3-6 % of their counts are non-zero, and then by a factor of 0.79 to
    1.27 per patient. Returned with it is the exposure in it, which is the depth without the drift.
    """
    n_rows, n_cols = tissue.shape
    patient = np.exp(rng.choice([-1, 1]) * rng.uniform(0.08, 0.24))
    rows, cols = rng.normal(0, _STRIPE_SD, (n_rows, 1)), rng.normal(0, _STRIPE_SD, (1, n_cols))
    drift = np.exp(_LOCAL_SD * smooth_noise(rng, max(n_rows, n_cols), _LOCAL_UM / BIN_UM))
    depth = np.exp(rows + cols) * drift[:n_rows, :n_cols]
    weighted = (programmes[:, tissue] * depth[tissue]).astype(np.float64).mean(axis=1)
    means = np.sort(loadings @ weighted)[-TOP_GENES:]
    scale = patient * _TOP_UMI / means.sum()
    scaled: Float32Array = (depth * scale).astype(np.float32)
    return scaled, Exposure(float(scale), np.exp(rows[:, 0]), np.exp(cols[0]))


def draw_exposure(
    rng: np.random.Generator, n_rows: int, n_cols: int, depth_sd: float, stripe_sd: float
) -> Exposure:
    """Draw further log-normal factors of slide, rows and columns, each of mean 1.

    ``depth_sd`` and ``stripe_sd`` are standard deviations of the natural logarithm.
    """
    normal = rng.standard_normal(1 + n_rows + n_cols)
    slide, rows, cols = np.split(normal, [1, 1 + n_rows])
    further = (np.exp(stripe_sd * z - stripe_sd**2 / 2) for z in (rows, cols))
    return Exposure(float(np.exp(depth_sd * slide[0] - depth_sd**2 / 2)), *further)

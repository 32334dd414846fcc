"""Pearson's r from sums, and the ways to average it over genes."""

from __future__ import annotations

import numpy as np

from virchow_st.kernels.moments import masked_moments
from virchow_st.types import Array, BoolArray, Float64Array

LEAST_RELATIVE_VARIANCE = 1e-11
"""Below this share of its mean square, a variance is rounding: the map counts as constant.

A standard deviation of 3·10⁻⁶ of the root mean square; float32 values differ by up to 10⁻⁷ of
themselves where they are meant to be equal, and the float64 sums err by less than 10⁻¹¹.
"""
FISHER_LIMIT = 1.0 - 1e-9
"""Largest |r| put into Fisher's z, which is infinite at 1."""

N, SX, SY, SXX, SYY, SXY = range(6)
"""Columns of the moments that `kernels.moments.masked_moments` gives."""


def moments(x: Array, y: Array, mask: BoolArray) -> Float64Array:
    """Sums over the masked bins of one patch, which add over patches.

    Args:
        x: (G, R, C) rates.
        y: (G, R, C) counts.
        mask: (R, C) bool.

    Returns:
        (G, 6) float64: n, Σx, Σy, Σx², Σy², Σxy.
    """
    G = len(x)
    return masked_moments(x.reshape(G, -1), y.reshape(G, -1), mask.ravel())


def pearson_from_moments(moments: Float64Array) -> Float64Array:
    """Pearson's r of prediction x and observation y.

    Args:
        moments: (..., 6) n, Σx, Σy, Σx², Σy², Σxy.

    Returns:
        (...) float64 in [−1, 1]. NaN where the observation has no variance (nothing to explain, and
        no bins at all); 0 where it has and the prediction has none (it explains nothing).
    """
    n, sx, sy, sxx, syy, sxy = np.moveaxis(moments, -1, 0)
    vx, vy, cov = n * sxx - sx * sx, n * syy - sy * sy, n * sxy - sx * sy  # all times n²
    x_varies, y_varies = vx > LEAST_RELATIVE_VARIANCE * n * sxx, varies(moments)
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.clip(cov / (np.sqrt(vx) * np.sqrt(vy)), -1.0, 1.0)
    return np.where(y_varies, np.where(x_varies, r, 0.0), np.nan)


def varies(moments: Float64Array) -> BoolArray:
    """Whether the observation y has any variance, (...) bool, from moments (..., 6)."""
    n, sy, syy = moments[..., N], moments[..., SY], moments[..., SYY]
    return np.asarray(n * syy - sy * sy > LEAST_RELATIVE_VARIANCE * n * syy)


def pooled_pearson(moments: Float64Array) -> float:
    """Pearson's r with the bins of all genes in one vector, from moments (G, 6).

    Differences between the means of genes count as agreement, so that predicting every gene's mean
    already scores well. Kept because published figures are often of this kind.
    """
    return float(pearson_from_moments(moments.sum(0)))


def fisher_mean(r: Float64Array) -> float:
    """Mean of correlations (n,) in Fisher's z, tanh(mean(artanh r)); NaN where there are none.

    Fisher, Metron 1 (1921) 3. |r| is limited to `FISHER_LIMIT`.
    """
    if r.size == 0:
        return float("nan")
    return float(np.tanh(np.arctanh(np.clip(r, -FISHER_LIMIT, FISHER_LIMIT)).mean()))

"""Pearson's r computed from sums, and its averages over genes."""

from __future__ import annotations

import numpy as np

from virchow_st.kernels.moments import masked_moments
from virchow_st.types import Array, BoolArray, Float64Array

LEAST_RELATIVE_VARIANCE = 1e-11
"""A map whose variance is below this share of its mean square is taken as constant.

This corresponds to a standard deviation of 3·10⁻⁶ of the root mean square. Float32 values that
ought to be equal differ by a relative 10⁻⁷, and the float64 sums have a relative error below 10⁻¹¹.
"""
FISHER_LIMIT = 1.0 - 1e-9
"""Largest |r| that Fisher's z is computed for; z is infinite at 1."""

N, SX, SY, SXX, SYY, SXY = range(6)
"""Columns of the moments that `kernels.moments.masked_moments` returns."""


def moments(x: Array, y: Array, mask: BoolArray) -> Float64Array:
    """Sums over the masked bins of one patch; the sums of several patches add up.

    Args:
        x: (G, R, C) predicted rates.
        y: (G, R, C) counts.
        mask: (R, C) bool; bins where it is False are left out.

    Returns:
        (G, 6) float64: n, Σx, Σy, Σx², Σy², Σxy.

    Example:
        >>> x, y = np.array([[[0.5, 1.5]]]), np.array([[[0, 2]]])
        >>> moments(x, y, np.array([[True, True]])).tolist()
        [[2.0, 2.0, 2.0, 2.5, 4.0, 3.0]]
    """
    G = len(x)
    return masked_moments(x.reshape(G, -1), y.reshape(G, -1), mask.ravel())


def pearson_from_moments(moments: Float64Array) -> Float64Array:
    """Pearson's r of prediction x and observation y.

    Args:
        moments: (..., 6) n, Σx, Σy, Σx², Σy², Σxy.

    Returns:
        (...) float64 in [−1, 1]. NaN where the observation has no variance or there are no bins
        (there is nothing to explain); 0 where only the prediction has no variance (it explains
        nothing).

    Example:
        A perfectly linear prediction, and a constant one:

        >>> counts = np.array([[[0, 1, 2]], [[0, 1, 2]]])
        >>> rates = np.array([[[0.1, 0.2, 0.3]], [[0.2, 0.2, 0.2]]])
        >>> pearson_from_moments(moments(rates, counts, np.ones((1, 3), bool))).round(6)
        array([1., 0.])
    """
    n, sx, sy, sxx, syy, sxy = np.moveaxis(moments, -1, 0)
    vx, vy, cov = n * sxx - sx * sx, n * syy - sy * sy, n * sxy - sx * sy  # all times n²
    x_varies, y_varies = vx > LEAST_RELATIVE_VARIANCE * n * sxx, varies(moments)
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.clip(cov / (np.sqrt(vx) * np.sqrt(vy)), -1.0, 1.0)
    return np.where(y_varies, np.where(x_varies, r, 0.0), np.nan)


def varies(moments: Float64Array) -> BoolArray:
    """Whether the observation y varies over the bins, (...) bool, from moments (..., 6).

    Example:
        >>> constant, varying = [2.0, 1, 2, 1, 2, 1], [2.0, 1, 2, 1, 4, 2]
        >>> varies(np.array([constant, varying])).tolist()
        [False, True]
    """
    n, sy, syy = moments[..., N], moments[..., SY], moments[..., SYY]
    return np.asarray(n * syy - sy * sy > LEAST_RELATIVE_VARIANCE * n * syy)


def pooled_pearson(moments: Float64Array) -> float:
    """Pearson's r with the bins of all genes concatenated into one vector, from moments (G, 6).

    Differences between the means of genes count as agreement, so predicting the mean of every gene
    already scores well. It is reported because published scores are often of this kind.

    Example:
        Two genes of mean 1 and 10, each predicted by its mean:

        >>> rates, counts = np.full((2, 1, 2), 1.0), np.array([[[0.0, 2.0]], [[9.0, 11.0]]])
        >>> rates[1] = 10
        >>> m = moments(rates, counts, np.ones((1, 2), bool))
        >>> pearson_from_moments(m).tolist(), round(pooled_pearson(m), 3)
        ([0.0, 0.0], 0.976)
    """
    return float(pearson_from_moments(moments.sum(0)))


def fisher_mean(r: Float64Array) -> float:
    """Mean of correlations (n,) in Fisher's z, tanh(mean(artanh r)); NaN if there are none.

    Fisher, Metron 1 (1921) 3. |r| is limited to `FISHER_LIMIT`.

    Example:
        >>> round(fisher_mean(np.array([0.0, 0.9])), 4)  # the plain mean is 0.45
        0.6268
    """
    if r.size == 0:
        return float("nan")
    return float(np.tanh(np.arctanh(np.clip(r, -FISHER_LIMIT, FISHER_LIMIT)).mean()))

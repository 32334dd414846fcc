"""Scores of rates on their absolute level: Poisson deviance explained, and calibration."""

from __future__ import annotations

import numpy as np

from virchow_st.kernels.moments import masked_poisson_sums
from virchow_st.types import Array, BoolArray, Float64Array

RATE_FLOOR = 1e-6
"""Smallest rate used in a deviance, UMIs per scored bin.

A Poisson deviance requires λ > 0, which a decoder trained on squared error does not guarantee. With
this floor, one UMI in a bin with λ ≤ 0 adds about 2·ln(10⁶) ≈ 28 instead of infinity.
"""

NONZERO, RATE, K_LOG_RATE, K_LOG_K = range(4)
"""Columns of the sums that `kernels.moments.masked_poisson_sums` returns."""


def poisson_sums(rate: Array, counts: Array, mask: BoolArray) -> Float64Array:
    """Sums over the masked bins of one patch; the sums of several patches add up.

    Args:
        rate: (G, R, C) predicted UMIs per bin; values below `RATE_FLOOR` are raised to it.
        counts: (G, R, C) observed UMIs per bin.
        mask: (R, C) bool; bins where it is False are left out.

    Returns:
        (G, 4) float64: number of bins with counts, Σλ, Σ k ln λ, Σ k ln k.

    Example:
        >>> rate, counts = np.array([[[0.5, 1.0, 2.0]]]), np.array([[[0, 1, 3]]])
        >>> poisson_sums(rate, counts, np.ones((1, 3), bool)).round(3)
        array([[2.   , 3.5  , 2.079, 3.296]])
    """
    G = len(rate)
    return masked_poisson_sums(rate.reshape(G, -1), counts.reshape(G, -1), mask.ravel(), RATE_FLOOR)


def poisson_deviance(sums: Float64Array, total: Float64Array) -> Float64Array:
    """Poisson deviance 2 Σ (k ln(k/λ) − k + λ) of counts under the predicted rates.

    McCullagh & Nelder, Generalized Linear Models (1989), § 2.3.

    Args:
        sums: (..., 4) sums from `poisson_sums`.
        total: (...) Σk over the same bins.

    Returns:
        (...) float64 ≥ 0 up to rounding.

    Example:
        >>> rate, counts = np.array([[[0.5, 1.0, 2.0]]]), np.array([[[0, 1, 3]]])
        >>> sums = poisson_sums(rate, counts, np.ones((1, 3), bool))
        >>> poisson_deviance(sums, counts.sum((1, 2))).round(3)
        array([1.433])
    """
    return 2.0 * (sums[..., K_LOG_K] - sums[..., K_LOG_RATE] - total + sums[..., RATE])


def constant_deviance(
    sums: Float64Array, total: Float64Array, n: Float64Array, rate: Float64Array
) -> Float64Array:
    """Poisson deviance of the same counts under one constant rate for all bins.

    Args:
        sums: (..., 4) sums from `poisson_sums`.
        total: (...) Σk over the same bins.
        n: (...) or scalar, number of bins.
        rate: (...) constant rate, UMIs per bin; values below `RATE_FLOOR` are raised to it.

    Returns:
        (...) float64 ≥ 0 up to rounding.

    Example:
        >>> rate, counts = np.array([[[0.5, 1.0, 2.0]]]), np.array([[[0, 1, 3]]])
        >>> sums = poisson_sums(rate, counts, np.ones((1, 3), bool))
        >>> constant_deviance(sums, counts.sum((1, 2)), n=3, rate=np.array([4 / 3])).round(3)
        array([4.29])
    """
    rate = np.maximum(rate, RATE_FLOOR)
    return 2.0 * (sums[..., K_LOG_K] - total * np.log(rate) - total + n * rate)


def deviance_explained(deviance: Float64Array, null: Float64Array) -> Float64Array:
    """Share of the deviance of a null model that a prediction explains, D² = 1 − D/D₀.

    1 is a perfect fit, which Poisson noise makes unreachable; 0 is as good as the null model; below
    0 is worse. Cameron & Windmeijer, J. Bus. Econ. Stat. 14 (1996) 209.

    Args:
        deviance: (...) Poisson deviance D of the prediction.
        null: (...) Poisson deviance D₀ of the null model on the same counts.

    Returns:
        (...) float64, at most 1; NaN where the null deviance is 0.

    Example:
        >>> deviance_explained(np.array([1.433]), np.array([4.29])).round(3)
        array([0.666])
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(null > 0, 1.0 - deviance / null, np.nan)


def calibration(predicted: Float64Array, observed: Float64Array) -> Float64Array:
    """Ratio of predicted to observed total UMIs; 1 is well calibrated, NaN if none was observed.

    Example:
        >>> calibration(np.array([90.0, 5.0]), np.array([100.0, 0.0]))
        array([0.9, nan])
    """
    predicted, observed = np.asarray(predicted), np.asarray(observed)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(observed > 0, predicted / observed, np.nan)

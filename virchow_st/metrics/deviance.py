"""Figures that judge rates as rates: the Poisson deviance they explain, and their sum."""

from __future__ import annotations

import numpy as np

from virchow_st.kernels.moments import masked_poisson_sums
from virchow_st.types import Array, BoolArray, Float64Array

RATE_FLOOR = 1e-6
"""Smallest rate in a deviance, UMIs per scored bin.

A Poisson deviance needs λ > 0, which a decoder trained on squared error does not promise. A count
on a bin with λ ≤ 0 then costs about 2·ln(10⁶) ≈ 28: much, but not without end.
"""

NONZERO, RATE, K_LOG_RATE, K_LOG_K = range(4)
"""Columns of the sums that `kernels.moments.masked_poisson_sums` gives."""


def poisson_sums(rate: Array, counts: Array, mask: BoolArray) -> Float64Array:
    """Sums over the masked bins of one patch, which add over patches.

    Args:
        rate: (G, R, C) expected UMIs per bin, floored at `RATE_FLOOR`.
        counts: (G, R, C) UMIs per bin.
        mask: (R, C) bool.

    Returns:
        (G, 4) float64: bins with counts, Σλ, Σ k ln λ, Σ k ln k.
    """
    G = len(rate)
    return masked_poisson_sums(rate.reshape(G, -1), counts.reshape(G, -1), mask.ravel(), RATE_FLOOR)


def poisson_deviance(sums: Float64Array, total: Float64Array) -> Float64Array:
    """Poisson deviance 2 Σ (k ln(k/λ) − k + λ) of counts under the predicted rates.

    McCullagh & Nelder, Generalized Linear Models (1989), § 2.3.

    Args:
        sums: (..., 4) as `poisson_sums` gives them.
        total: (...) Σk over the same bins.

    Returns:
        (...) float64 ≥ 0 up to rounding.
    """
    return 2.0 * (sums[..., K_LOG_K] - sums[..., K_LOG_RATE] - total + sums[..., RATE])


def constant_deviance(
    sums: Float64Array, total: Float64Array, n: Float64Array, rate: Float64Array
) -> Float64Array:
    """Poisson deviance of the same counts under one rate for every bin.

    Args:
        sums: (..., 4) as `poisson_sums` gives them.
        total: (...) Σk.
        n: (...) or scalar, number of bins.
        rate: (...) expected UMIs per bin, floored at `RATE_FLOOR`.

    Returns:
        (...) float64 ≥ 0 up to rounding.
    """
    rate = np.maximum(rate, RATE_FLOOR)
    return 2.0 * (sums[..., K_LOG_K] - total * np.log(rate) - total + n * rate)


def deviance_explained(deviance: Float64Array, null: Float64Array) -> Float64Array:
    """Share of the null model's deviance that a prediction does away with, D² = 1 − D/D₀.

    1 is a perfect fit, which Poisson noise forbids; 0 is no better than the null; below 0 is worse.
    Cameron & Windmeijer, J. Bus. Econ. Stat. 14 (1996) 209. NaN where the null deviance is 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(null > 0, 1.0 - deviance / null, np.nan)


def calibration(predicted: Float64Array, observed: Float64Array) -> Float64Array:
    """Σ predicted / Σ observed UMIs; NaN where none was observed."""
    predicted, observed = np.asarray(predicted), np.asarray(observed)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(observed > 0, predicted / observed, np.nan)

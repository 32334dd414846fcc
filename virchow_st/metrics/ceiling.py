"""Noise ceiling: the largest correlation that any predicted rate can have with Poisson counts."""

from __future__ import annotations

import numpy as np

from virchow_st.types import Float64Array


def noise_ceiling(mean: Float64Array, variance: Float64Array) -> Float64Array:
    """Pearson's r that the true rates would reach, estimated from the counts alone.

    With k ~ Poisson(λ), Var k = Var λ + E λ and Cov(λ, k) = Var λ, so that
    r(λ, k) = √(Var λ / Var k) = √(1 − E k / Var k).

    Args:
        mean: (...) mean of the counts over bins, UMIs.
        variance: (...) variance of the counts over the same bins, UMIs².

    Returns:
        (...) float64 in [0, 1]: 0 where the counts vary no more than the Poisson noise of a
        constant rate; NaN where the variance is 0.

    Example:
        Counts with twice the variance of Poisson noise, and counts with no more than that:

        >>> noise_ceiling(np.array([0.05, 0.05]), np.array([0.10, 0.05])).round(3)
        array([0.707, 0.   ])
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = np.maximum(0.0, 1.0 - np.asarray(mean) / np.asarray(variance))
    return np.where(np.asarray(variance) > 0, np.sqrt(explained), np.nan)


def thinned_ceiling(r_halves: Float64Array) -> Float64Array:
    """The same ceiling, from the correlation of two random halves of the counts: √(2r / (1 + r)).

    The halves of a Poisson(λ) count are independent Poisson(λ/2) counts. Their correlation is
    r = Var λ / (Var λ + 2 E λ), and √(2r / (1 + r)) = √(Var λ / (Var λ + E λ)) is the ceiling; this
    is the split-half correction of Spearman (1910) and Brown (1910).

    Args:
        r_halves: (...) Pearson's r of the two halves; values below 0 are taken as 0.

    Returns:
        (...) float64 in [0, 1]; NaN where ``r_halves`` is NaN.

    Example:
        >>> thinned_ceiling(np.array([1 / 3, -0.01])).round(3)
        array([0.707, 0.   ])
    """
    r = np.maximum(r_halves, 0.0)
    return np.sqrt(2.0 * r / (1.0 + r))

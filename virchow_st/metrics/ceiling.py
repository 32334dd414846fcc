"""How well any prediction of the rate can correlate with counts that carry Poisson noise."""

from __future__ import annotations

import numpy as np

from virchow_st.types import Float64Array


def noise_ceiling(mean: Float64Array, variance: Float64Array) -> Float64Array:
    """Pearson's r that the true rates would reach, estimated from the counts alone.

    With k ~ Poisson(λ), Var k = Var λ + E λ and Cov(λ, k) = Var λ, so that
    r(λ, k) = √(Var λ / Var k) = √(1 − E k / Var k).

    Args:
        mean: (...) mean of the counts over bins, UMIs.
        variance: (...) their variance over the same bins, UMIs².

    Returns:
        (...) float64 in [0, 1]: 0 where the counts vary no more than Poisson noise of a constant
        rate would; NaN where the variance is 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = np.maximum(0.0, 1.0 - np.asarray(mean) / np.asarray(variance))
    return np.where(np.asarray(variance) > 0, np.sqrt(explained), np.nan)


def thinned_ceiling(r_halves: Float64Array) -> Float64Array:
    """The same ceiling from counts split at random into two halves: √(2r / (1 + r)).

    The halves of Poisson(λ) are independent Poisson(λ/2), so that their correlation is
    r = Var λ / (Var λ + 2 E λ), from which √(Var λ / (Var λ + E λ)) follows: the step from half a
    test to a whole one of Spearman (1910) and Brown (1910).

    Args:
        r_halves: (...) Pearson's r of the two halves; below 0 taken as 0.

    Returns:
        (...) float64 in [0, 1]; NaN where r is.
    """
    r = np.maximum(r_halves, 0.0)
    return np.sqrt(2.0 * r / (1.0 + r))

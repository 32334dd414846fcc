"""Moran's I of predictions, counts and residuals, computed from sums over patches."""

from __future__ import annotations

import numpy as np

from virchow_st.metrics import correlation
from virchow_st.types import Float64Array

XX, YY, XY, X, Y = range(5)
"""Columns of the sums that `kernels.neighbours.neighbour_sums` returns."""


def morans_i(
    moments: Float64Array, neighbours: Float64Array, n_pairs: int
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Moran's I of rates x, counts y and residuals y − x, over bins that share a side.

    I = (n/W) Σᵢⱼ wᵢⱼ (zᵢ − z̄)(zⱼ − z̄) / Σᵢ (zᵢ − z̄)² with wᵢⱼ = 1 for neighbours in the same patch
    and 0 otherwise. Moran, Biometrika 37 (1950) 17.

    Args:
        moments: (G, 6) n, Σx, Σy, Σx², Σy², Σxy.
        neighbours: (G, 5) sums from `kernels.neighbours.neighbour_sums` over the same bins.
        n_pairs: Number of pairs of neighbours, W/2.

    Returns:
        Moran's I of the rates, of the counts and of the residuals, (G,) float64 each; NaN where
        there are no neighbours or where a map does not vary.

    Example:
        >>> import numpy as np
        >>> from virchow_st.kernels.neighbours import neighbour_sums
        >>> rate = np.array([[[0.0, 0.0, 1.0, 1.0]]])  # a gradient: neighbours are alike
        >>> counts = np.array([[[0.0, 1.0, 0.0, 1.0]]])  # alternating: neighbours differ
        >>> mask = np.ones((1, 4), bool)
        >>> moments = correlation.moments(rate, counts, mask)
        >>> predicted, observed, _ = morans_i(moments, *neighbour_sums(rate, counts, mask))
        >>> print(predicted.round(3), observed.round(3))
        [0.333] [-1.]
    """
    n, x, y, xx, yy, xy = np.moveaxis(moments, -1, 0)
    s = np.moveaxis(neighbours, -1, 0)
    return (
        _morans_i(n, x, xx, s[XX], s[X], n_pairs, xx),
        _morans_i(n, y, yy, s[YY], s[Y], n_pairs, yy),
        _morans_i(n, y - x, yy - 2 * xy + xx, s[YY] - s[XY] + s[XX], s[Y] - s[X], n_pairs, xx + yy),
    )


def _morans_i(
    n: Float64Array,
    total: Float64Array,
    squares: Float64Array,
    products: Float64Array,
    of_pairs: Float64Array,
    n_pairs: int,
    size: Float64Array,
) -> Float64Array:
    """Moran's I from Σz and Σz² over bins and Σ zᵢzⱼ and Σ (zᵢ + zⱼ) over pairs.

    ``size`` (G,) is the sum of squares relative to which a variance is taken as rounding error.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = total / n
        spread = squares - mean * total
        covariance = products - mean * of_pairs + n_pairs * mean * mean
        value = n / n_pairs * covariance / spread
    varies = spread > correlation.LEAST_RELATIVE_VARIANCE * size
    return np.where(varies & (n_pairs > 0), value, np.nan)

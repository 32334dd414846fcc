"""Moran's I of predictions, counts and what is left between them, from sums over patches."""

from __future__ import annotations

import numpy as np

from virchow_st.metrics import correlation
from virchow_st.types import Float64Array

XX, YY, XY, X, Y = range(5)
"""Columns of the sums that `kernels.neighbours.neighbour_sums` gives."""


def morans_i(
    moments: Float64Array, neighbours: Float64Array, n_pairs: int
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Moran's I of rates x, counts y and residuals y − x, over bins that share a side.

    I = (n/W) Σᵢⱼ wᵢⱼ (zᵢ − z̄)(zⱼ − z̄) / Σᵢ (zᵢ − z̄)² with wᵢⱼ = 1 for neighbours in the same patch
    and 0 else. Moran, Biometrika 37 (1950) 17.

    Args:
        moments: (G, 6) n, Σx, Σy, Σx², Σy², Σxy.
        neighbours: (G, 5) as `kernels.neighbours.neighbour_sums` gives them, over the same bins.
        n_pairs: pairs of neighbours, W/2.

    Returns:
        (G,) float64 each; NaN where there are no neighbours, or where a map does not vary.
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
    """Moran's I from Σz, Σz², and over pairs Σ zᵢzⱼ and Σ (zᵢ + zⱼ).

    ``size`` (G,) is the sum of squares against which a variance counts as rounding.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = total / n
        spread = squares - mean * total
        covariance = products - mean * of_pairs + n_pairs * mean * mean
        value = n / n_pairs * covariance / spread
    varies = spread > correlation.LEAST_RELATIVE_VARIANCE * size
    return np.where(varies & (n_pairs > 0), value, np.nan)

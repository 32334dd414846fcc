"""Plain NumPy reference for `virchow_st.kernels.factor_moments`, with dense rates in float64."""

from __future__ import annotations

import numpy as np
from scipy.special import xlogy

from virchow_st.types import Array, BoolArray, Float64Array, Int64Array


def factor_moments(
    start: Int64Array,
    position: Array,
    count: Array,
    loadings: Array,
    factors: Array,
    mask: BoolArray,
    factor: int,
    rate_floor: float,
    first: int,
    last: int,
    out: Float64Array,
) -> None:
    """Sums over the masked bins of the dense maps of genes ``first`` to ``last - 1``."""
    R, C = mask.shape
    for g in range(first, last):
        fine = np.zeros((R * factor, C * factor))
        own = slice(start[g], start[g + 1])
        fine.flat[position[own].astype(np.int64)] = count[own]
        k = fine.reshape(R, factor, C, factor).sum((1, 3))[mask]
        rates = factors[:, mask.ravel()].astype(np.float64) @ loadings[g].astype(np.float64)
        log_rate = np.log(np.maximum(rates[0], rate_floor))
        sums = [k.sum(), (k**2).sum(), (k > 0).sum(), k @ log_rate, xlogy(k, k).sum()]
        out[g] += [*sums, *(rates @ k)]

"""Sums over the masked bins of a patch, one row per gene. The sums of several patches add up.

Every per-bin score follows from such sums, so one pass over the patches is enough and memory does
not grow with their number.

The sums are raw, not centred. A float64 carries about 16 digits. A UMI map with mean 0.05 and
variance near 0.05 has Σx² within a factor of about 20 of n times its variance, even over 10⁷ bins,
so the subtraction Σx² − (Σx)²/n loses only one or two digits. (float32 sums would not do: adding 1
no longer changes them beyond 1.7·10⁷.)
"""

from __future__ import annotations

import numpy as np
from numba import njit

from virchow_st.types import Array, BoolArray, Float64Array


# Reassociation lets the compiler keep several partial sums (SIMD); NaN and inf still propagate.
@njit(cache=True, nogil=True, fastmath={"reassoc"})
def masked_moments(x: Array, y: Array, mask: BoolArray) -> Float64Array:
    """Number of bins, sums, sums of squares and sum of products over the masked bins.

    Args:
        x: (G, N) real, such as predicted rates.
        y: (G, N) real, such as counts.
        mask: (N,) bool; values where it is False are never read, so they may be NaN.

    Returns:
        (G, 6) float64: n, Σx, Σy, Σx², Σy², Σxy.

    Example:
        >>> import numpy as np
        >>> x, y = np.array([[1.0, 2.0, np.nan]]), np.array([[0.0, 3.0, 9.0]])
        >>> masked_moments(x, y, np.array([True, True, False])).tolist()
        [[2.0, 3.0, 3.0, 5.0, 9.0, 6.0]]
    """
    G, N = x.shape
    n = 0
    for i in range(N):
        n += mask[i]
    out = np.empty((G, 6))
    for g in range(G):
        sx = sy = sxx = syy = sxy = 0.0
        for i in range(N):
            a = np.float64(x[g, i]) if mask[i] else 0.0
            b = np.float64(y[g, i]) if mask[i] else 0.0
            sx += a
            sy += b
            sxx += a * a
            syy += b * b
            sxy += a * b
        out[g, 0] = n
        out[g, 1] = sx
        out[g, 2] = sy
        out[g, 3] = sxx
        out[g, 4] = syy
        out[g, 5] = sxy
    return out


# Reassociation lets the compiler keep several partial sums (SIMD); NaN and inf still propagate.
@njit(cache=True, nogil=True, fastmath={"reassoc"})
def masked_products(x: Array, z: Float64Array, mask: BoolArray) -> Float64Array:
    """Sums of products of every map with six others over the masked bins.

    Args:
        x: (G, N) real, such as predicted rates.
        z: (6, N) float64, such as controls that all genes share.
        mask: (N,) bool; values of x where it is False are never read, so they may be NaN; those of
            z must be finite.

    Returns:
        (G, 6) float64: Σxz of each pair.

    Example:
        >>> import numpy as np
        >>> x, z = np.array([[1.0, 2.0, np.nan]]), np.arange(18.0).reshape(6, 3)
        >>> masked_products(x, z, np.array([True, True, False])).tolist()
        [[2.0, 11.0, 20.0, 29.0, 38.0, 47.0]]
    """
    G, N = x.shape
    out = np.empty((G, 6))
    for g in range(G):
        s0 = s1 = s2 = s3 = s4 = s5 = 0.0
        for i in range(N):  # six sums at once, since a loop over them would not be vectorised
            a = np.float64(x[g, i]) if mask[i] else 0.0
            s0 += a * z[0, i]
            s1 += a * z[1, i]
            s2 += a * z[2, i]
            s3 += a * z[3, i]
            s4 += a * z[4, i]
            s5 += a * z[5, i]
        out[g] = s0, s1, s2, s3, s4, s5
    return out


@njit(cache=True, nogil=True)
def masked_poisson_sums(
    rate: Array, counts: Array, mask: BoolArray, rate_floor: float
) -> Float64Array:
    """Sums over the masked bins from which the Poisson deviance of counts k at rates λ follows.

    Logarithms are computed only where k > 0, which is about one bin in twenty at 2 µm.

    Args:
        rate: (G, N) real, predicted UMIs per bin; ``max(rate, rate_floor)`` is used.
        counts: (G, N) real ≥ 0, observed UMIs per bin.
        mask: (N,) bool; values where it is False are never read.
        rate_floor: Smallest rate, UMIs per bin, > 0.

    Returns:
        (G, 4) float64: number of bins with k > 0, Σλ, Σ k ln λ, Σ k ln k.
    """
    G, N = rate.shape
    out = np.zeros((G, 4))
    for g in range(G):
        nonzero = rates = k_log_rate = k_log_k = 0.0
        for i in range(N):
            if mask[i]:
                lam = max(np.float64(rate[g, i]), rate_floor)
                k = np.float64(counts[g, i])
                rates += lam
                if k > 0:
                    nonzero += 1.0
                    k_log_rate += k * np.log(lam)
                    k_log_k += k * np.log(k)
        out[g, 0] = nonzero
        out[g, 1] = rates
        out[g, 2] = k_log_rate
        out[g, 3] = k_log_k
    return out

"""Binomial thinning: counts split at random into two halves, and the moments of the halves.

The two halves of a Poisson count are independent Poisson counts of half the rate. The random bit of
each UMI is taken from a hash of the gene's counts in the patch, so that a patch is always split in
the same way, independent of the order of the patches and of the model that is scored.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from virchow_st.types import Array, BoolArray, Float64Array

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ONES, _ONE = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(1)
_M1, _M2 = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
_M4, _BYTES = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)


@njit(cache=True, nogil=True)
def thinned_moments(y: Array, mask: BoolArray) -> Float64Array:
    """Moments of the two random halves a and b of every count y, a + b = y.

    Args:
        y: (G, N) UMIs per bin, whole numbers of at least 0 where the mask is True.
        mask: (N,) bool; values where it is False are never used.

    Returns:
        (G, 6) float64 n, Σa, Σb, Σa², Σb², Σab; the columns of `masked_moments`.
    """
    G, N = y.shape
    n = 0
    for i in range(N):
        n += mask[i]
    out = np.zeros((G, 6))
    filled = np.empty(N, np.int64)
    for g in range(G):
        n_filled = 0
        seed = np.uint64(0)
        for i in range(N):
            if y[g, i] > 0 and mask[i]:
                filled[n_filled] = i
                n_filled += 1
                seed += mixed(np.uint64(i) << np.uint64(32) | np.uint64(y[g, i]))
        sa = sb = saa = sbb = sab = 0.0
        for j in range(n_filled):
            k = np.int64(y[g, filled[j]])
            state = mixed(seed + np.uint64(filled[j]) * _STEP)
            heads = 0
            left = k
            while left >= 64:
                heads += ones_in(state)
                state = mixed(state + _STEP)
                left -= 64
            if left > 0:
                heads += ones_in(state & ((_ONE << np.uint64(left)) - _ONE))
            a, b = np.float64(heads), np.float64(k - heads)
            sa += a
            sb += b
            saa += a * a
            sbb += b * b
            sab += a * b
        out[g, 0] = n
        out[g, 1] = sa
        out[g, 2] = sb
        out[g, 3] = saa
        out[g, 4] = sbb
        out[g, 5] = sab
    return out


@njit(cache=True, nogil=True)
def mixed(z: np.uint64) -> np.uint64:
    """64-bit hash of ``z``: the finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014, 453)."""
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
def ones_in(z: np.uint64) -> np.int64:
    """Number of bits set in a 64-bit number."""
    z = z - ((z >> _ONE) & _M1)
    z = (z & _M2) + ((z >> np.uint64(2)) & _M2)
    z = (z + (z >> np.uint64(4))) & _M4
    return np.int64((z * _BYTES) >> np.uint64(56))

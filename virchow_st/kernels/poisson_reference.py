"""Plain NumPy reference for `virchow_st.kernels.poisson`, in float64 and map by map."""

from __future__ import annotations

import numpy as np
from scipy.special import xlogy

from virchow_st.kernels.poisson import MAX_LOG_RATE, MIN_LOG_RATE
from virchow_st.types import Array, BoolArray, Float64Array, Int64Array


def half_deviances(
    log_rate: Array,
    mask: BoolArray,
    start: Int64Array,
    position: Array,
    count: Array,
    first: int,
    last: int,
    out: Float64Array,
    quotients: Array,
) -> None:
    """``K·log(K/Λ) - K + Λ`` summed over bins, per map and level, and K/Λ of coarser levels."""
    for m in range(first, last):
        rate, counts = _dense(m, log_rate, mask, start, position, count)
        end = 0
        for level in range(out.shape[1]):
            sums, umi = _sums(rate, level), _sums(counts, level)
            seen = umi > 0
            out[m, level] = xlogy(umi[seen], umi[seen] / sums[seen]).sum() - umi.sum() + sums.sum()
            if level:
                quotient = np.divide(umi, sums, out=np.zeros_like(umi), where=sums > 0).ravel()
                quotients[m, end : end + len(quotient)] = quotient
                end += len(quotient)


def half_deviance_gradient(
    log_rate: Array,
    mask: BoolArray,
    start: Int64Array,
    position: Array,
    count: Array,
    quotients: Array,
    weights: Array,
    first: int,
    last: int,
    out: Array,
) -> None:
    """``Σ_l w_l·λ·(1 - K_l/Λ_l)``, 0 outside tissue, without use of the quotients passed."""
    for m in range(first, last):
        rate, counts = _dense(m, log_rate, mask, start, position, count)
        out[m] = 0
        for level, weight in enumerate(weights):
            sums, umi = _sums(rate, level), _sums(counts, level)
            factor = 1 - np.divide(umi, sums, out=np.zeros_like(umi), where=sums > 0)
            out[m] += weight * rate * np.kron(factor, np.ones((2**level, 2**level)))


def _dense(
    m: int, log_rate: Array, mask: BoolArray, start: Int64Array, position: Array, count: Array
) -> tuple[Float64Array, Float64Array]:
    """Rates and counts of map m at 2 µm, 0 outside tissue."""
    tissue = mask[m // (len(log_rate) // len(mask))]
    rate = np.exp(np.clip(log_rate[m].astype(np.float64), MIN_LOG_RATE, MAX_LOG_RATE)) * tissue
    counts = np.zeros(tissue.shape)
    own = slice(start[m], start[m + 1])
    counts.flat[position[own].astype(np.int64)] = count[own]
    return rate, counts * tissue


def _sums(x: Float64Array, level: int) -> Float64Array:
    f = 2**level
    return x.reshape(x.shape[0] // f, f, x.shape[1] // f, f).sum((1, 3))

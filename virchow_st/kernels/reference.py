"""Reference implementations of the kernels, written plainly with NumPy, SciPy and scikit-image.

They have the names, arguments and results of the kernels. They are slow and meant to be read;
`kernels.table` pairs each with its kernel for the tests and the benchmark.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.special import xlogy
from skimage.measure import block_reduce
from skimage.metrics import structural_similarity

from virchow_st.kernels.ssim import WINDOW
from virchow_st.types import Array, BoolArray, Float64Array, Int64Array

_STEP = np.uint64(0x9E3779B97F4A7C15)


def sum_pool(x: Array, factor: int) -> Float64Array:
    """Sums of (G, R, C) over ``factor`` × ``factor`` blocks, float64."""
    return block_reduce(x.astype(np.float64), (1, factor, factor), np.sum)


def pool_mask(mask: BoolArray, factor: int) -> BoolArray:
    """Whether each ``factor`` × ``factor`` block of (R, C) is True throughout."""
    return block_reduce(mask, (factor, factor), np.all)


def dequantise(codes: Array, scales: Array) -> Array:
    """``codes * scales`` in float32, rounded to float16."""
    return (codes * scales.astype(np.float32)).astype(np.float16)


def masked_moments(x: Array, y: Array, mask: BoolArray) -> Float64Array:
    """Sums n, Σx, Σy, Σx², Σy², Σxy per row, (G, 6)."""
    a, b = x[:, mask].astype(np.float64), y[:, mask].astype(np.float64)
    n = np.full(len(x), mask.sum())
    sums = (a.sum(1), b.sum(1), (a**2).sum(1), (b**2).sum(1), (a * b).sum(1))
    return np.column_stack((n, *sums)).astype(np.float64)


def masked_products(x: Array, z: Array, mask: BoolArray) -> Float64Array:
    """Σxz of each row of x (G, N) with each of z (6, N), (G, 6)."""
    return x[:, mask].astype(np.float64) @ z[:, mask].T


def masked_poisson_sums(
    rate: Array, counts: Array, mask: BoolArray, rate_floor: float
) -> Float64Array:
    """Number of bins with counts, Σλ, Σ k ln λ and Σ k ln k per row, (G, 4)."""
    lam = np.maximum(rate[:, mask].astype(np.float64), rate_floor)
    k = counts[:, mask].astype(np.float64)
    sums = ((k > 0).sum(1), lam.sum(1), xlogy(k, lam).sum(1), xlogy(k, k).sum(1))
    return np.column_stack(sums).astype(np.float64)


def masked_ssim(x: Array, y: Array, mask: BoolArray) -> tuple[float, int]:
    """Sum of scikit-image's SSIM over the windows wholly inside the mask, and their number."""
    if min(mask.shape) < WINDOW:
        return 0.0, 0
    half = WINDOW // 2
    inside = np.lib.stride_tricks.sliding_window_view(mask, (WINDOW, WINDOW)).all((2, 3))
    if not inside.any():
        return 0.0, 0
    a, b = scale_to_unit(x, mask), scale_to_unit(y, mask)
    _, ssim = structural_similarity(a, b, win_size=WINDOW, data_range=1.0, full=True)
    return float(ssim[half:-half, half:-half][inside].sum()), int(inside.sum())


def masked_ssims(xs: tuple[Array, ...], y: Array, mask: BoolArray) -> tuple[Float64Array, int]:
    """`masked_ssim` of every map: (K, G) sums and the number of windows."""
    pairs = [[masked_ssim(a, b, mask) for a, b in zip(x, y, strict=True)] for x in xs]
    return np.array([[total for total, _ in row] for row in pairs]), pairs[0][0][1]


def zero_ssims(y: Array, mask: BoolArray) -> Float64Array:
    """`masked_ssim` of an all-zero map with each map of y: (G,) sums."""
    return np.array([masked_ssim(np.zeros(b.shape), b, mask)[0] for b in y])


def neighbour_sums(x: Array, y: Array, mask: BoolArray) -> tuple[Float64Array, int]:
    """Sums over neighbours from the sparse matrix W, wᵢⱼ = 1 where bins i and j share a side."""
    W = rook_weights(mask)
    a, b = x[:, mask].astype(np.float64), y[:, mask].astype(np.float64)
    wa, wb = (W @ a.T).T, (W @ b.T).T
    sums = [(a * wa).sum(1) / 2, (b * wb).sum(1) / 2, (a * wb).sum(1), wa.sum(1), wb.sum(1)]
    return np.column_stack(sums), W.nnz // 2


def rook_weights(mask: BoolArray) -> Any:
    """Rook adjacency of the n bins inside the mask: (n, n) sparse matrix of 0 and 1."""
    at = np.full(mask.shape, -1)
    at[mask] = np.arange(mask.sum())
    first = np.concatenate([at[:, :-1].ravel(), at[:-1].ravel()])
    second = np.concatenate([at[:, 1:].ravel(), at[1:].ravel()])
    both = (first >= 0) & (second >= 0)
    first, second = first[both], second[both]
    upper = coo_array((np.ones(first.size), (first, second)), shape=(mask.sum(), mask.sum()))
    return (upper + upper.T).tocsr()


def rate_keys(x: Array) -> Int64Array:
    """Key of each rate (see `kernels.joint`): 256 per octave from 2⁻²⁰ to 2²⁰."""
    size = np.abs(x.astype(np.float32)).astype(np.float64)
    mantissa, exponent = np.frexp(np.clip(size, 2.0**-20, 2.0**20))  # mantissa in [½, 1)
    key = (exponent + 19) * 256 + np.floor((2 * mantissa - 1) * 256).astype(np.int64) + 1
    return np.where(size < 2.0**-20, 0, np.minimum(key, 40 * 256)) * np.where(x < 0, -1, 1)


def count_classes(k: Array) -> Int64Array:
    """Class of each count (see `kernels.joint`): exact below 64, then 32 per octave."""
    k = k.astype(np.int64)
    octave = np.maximum(np.frexp(k.astype(np.float64))[1] - 6, 0)
    return octave * 32 + (k >> octave)


def joint_cells(x: Array, y: Array, mask: BoolArray) -> tuple[Int64Array]:
    """Gene, key, class and number of bins of every pair that occurs, (4, n), sorted."""
    columns = []
    for g in range(len(x)):
        both = np.stack([rate_keys(x[g, mask]), count_classes(y[g, mask])])
        cells, times = np.unique(both, axis=1, return_counts=True)
        columns.append(np.vstack([np.full_like(times, g), cells, times]))
    return (np.hstack(columns),)


def thinned_moments(y: Array, mask: BoolArray) -> Float64Array:
    """Moments of the two halves of binomially thinned counts, drawn from SplitMix64 hash bits."""
    out = []
    for row in y:
        at = np.flatnonzero(mask & (row > 0))
        k, place = row[at].astype(np.uint64), at.astype(np.uint64)
        seed = _split_mix(place << np.uint64(32) | k).sum(dtype=np.uint64)
        state = _split_mix(seed + place * _STEP)
        heads, left = np.zeros(at.size), k.astype(np.int64)
        while (left > 0).any():
            coins = np.unpackbits(state.astype("<u8").view(np.uint8), bitorder="little")
            heads += (coins.reshape(-1, 64) & (np.arange(64) < left[:, None])).sum(1)
            state, left = _split_mix(state + _STEP), left - 64
        tails = k - heads
        sums = [heads, tails, heads**2, tails**2, heads * tails]
        out.append([mask.sum(), *(s.sum() for s in sums)])
    return np.array(out, dtype=np.float64)


def _split_mix(z: Array) -> Array:
    """The finaliser of SplitMix64, uint64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def scale_to_unit(x: Array, mask: BoolArray) -> Float64Array:
    """A map (R, C) scaled to 0–1 inside the mask; 0 outside it and where it is constant."""
    out = np.zeros(x.shape)
    inside = x[mask].astype(np.float64)
    low, high = inside.min(), inside.max()
    if high > low:
        out[mask] = (inside - low) / (high - low)
    return out

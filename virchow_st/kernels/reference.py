"""What each kernel computes, written plainly with NumPy, SciPy and scikit-image.

Same names, arguments and results as the kernels. Slow, and meant to be read; `kernels.table` sets
the two side by side for the tests and the benchmark.
"""

from __future__ import annotations

import numpy as np
from scipy.special import xlogy
from skimage.measure import block_reduce
from skimage.metrics import structural_similarity

from virchow_st.kernels.ssim import WINDOW
from virchow_st.types import Array, BoolArray, Float64Array


def sum_pool(x: Array, factor: int) -> Float64Array:
    """Block sums of (G, R, C), float64."""
    return block_reduce(x.astype(np.float64), (1, factor, factor), np.sum)


def pool_mask(mask: BoolArray, factor: int) -> BoolArray:
    """Blocks of (R, C) that are wholly True."""
    return block_reduce(mask, (factor, factor), np.all)


def dequantise(codes: Array, scales: Array) -> Array:
    """``codes * scales`` in float32, then float16."""
    return (codes * scales.astype(np.float32)).astype(np.float16)


def masked_moments(x: Array, y: Array, mask: BoolArray) -> Float64Array:
    """Sums n, Σx, Σy, Σx², Σy², Σxy per row, (G, 6)."""
    a, b = x[:, mask].astype(np.float64), y[:, mask].astype(np.float64)
    n = np.full(len(x), mask.sum())
    sums = (a.sum(1), b.sum(1), (a**2).sum(1), (b**2).sum(1), (a * b).sum(1))
    return np.column_stack((n, *sums)).astype(np.float64)


def masked_poisson_sums(
    rate: Array, counts: Array, mask: BoolArray, rate_floor: float
) -> Float64Array:
    """Bins with counts, Σλ, Σ k ln λ, Σ k ln k per row, (G, 4)."""
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


def masked_ssim_stack(x: Array, y: Array, mask: BoolArray) -> tuple[Float64Array, int]:
    """`masked_ssim` gene by gene: (G,) sums and the number of windows."""
    pairs = [masked_ssim(a, b, mask) for a, b in zip(x, y, strict=True)]
    return np.array([total for total, _ in pairs]), pairs[0][1]


def scale_to_unit(x: Array, mask: BoolArray) -> Float64Array:
    """A map (R, C) scaled to 0–1 inside the mask; 0 outside it and where it is constant."""
    out = np.zeros(x.shape)
    inside = x[mask].astype(np.float64)
    low, high = inside.min(), inside.max()
    if high > low:
        out[mask] = (inside - low) / (high - low)
    return out

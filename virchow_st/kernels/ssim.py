"""Windowed structural similarity (SSIM) of predicted and observed maps inside a mask.

SSIM as in Wang, Bovik, Sheikh & Simoncelli, IEEE Trans. Image Process. 13 (2004) 600, with uniform
7 × 7 windows and sample (n − 1) covariances: the defaults of
``skimage.metrics.structural_similarity``.

Both maps are first scaled to 0–1 inside the mask, each by its own smallest and largest value there
(a map that is constant inside the mask becomes 0), so the data range is 1. Only windows that lie
entirely inside the mask, and hence entirely inside the map, are used.

The cost of a window does not depend on its size: a running sum over the last seven rows is kept per
column (the row that enters is added, the row that leaves is subtracted), these sums are accumulated
from left to right, and the sum over a window is the difference of two accumulated values.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from virchow_st.types import Array, BoolArray, Float64Array

WINDOW = 7
"""Side of a window, in bins. A constant, so that the compiler can fold it."""
C1 = 0.01**2
"""(K₁·range)², stabilises the luminance term."""
C2 = 0.03**2
"""(K₂·range)², stabilises the contrast and structure term."""

# Reassociation lets sums be vectorised. NumPy's rule for division by zero removes a check that
# would prevent vectorisation; no divisor is ever below C1·C2.
_FAST = {"cache": True, "nogil": True, "fastmath": {"reassoc"}, "error_model": "numpy"}


@njit(cache=True, nogil=True)
def masked_ssim(x: Array, y: Array, mask: BoolArray) -> tuple[float, int]:
    """Sum of SSIM over the windows that lie entirely inside the mask, and their number.

    Args:
        x: (R, C) real, C-contiguous. Values outside the mask are never used, so they may be NaN.
        y: (R, C) real, C-contiguous, likewise.
        mask: (R, C) bool.

    Returns:
        (sum, n_windows); (0.0, 0) if no window fits.

    Example:
        >>> import numpy as np
        >>> x = np.arange(64.0).reshape(8, 8)
        >>> total, n_windows = masked_ssim(x, x, np.ones((8, 8), bool))
        >>> round(total / n_windows, 6), n_windows
        (1.0, 4)
    """
    R, C = mask.shape
    sums, n_windows = masked_ssims((x.reshape(1, R, C),), y.reshape(1, R, C), mask)
    return sums[0, 0], n_windows


@njit(cache=True, nogil=True)
def masked_ssims(xs: tuple[Array, ...], y: Array, mask: BoolArray) -> tuple[Float64Array, int]:
    """`masked_ssim` of every gene of several predictions under one mask.

    Args:
        xs: K predictions, each (G, R, C), real, of one dtype.
        y: (G, R, C) real.
        mask: (R, C) bool, the same for all genes.

    Returns:
        (K, G) float64 sums, and the number of windows, which is the same for all of them.
    """
    G, R, C = y.shape
    sums = np.zeros((len(xs), G))
    whole, n_windows = _whole_windows(mask)
    if n_windows == 0:
        return sums, n_windows
    top, end = _rows_with_windows(whole)
    a, b = np.empty((R, C)), np.empty((R, C))
    for g in range(G):
        _scale_to_unit(y[g], mask, b)
        for k in range(len(xs)):
            _scale_to_unit(xs[k][g], mask, a)
            sums[k, g] = _ssim(a[top:], b[top:], whole[top:end])
    return sums, n_windows


@njit(cache=True, nogil=True)
def zero_ssims(y: Array, mask: BoolArray) -> Float64Array:
    """`masked_ssim` of an all-zero prediction for every gene of y (G, R, C).

    With x = 0 all sums except those of y and y² vanish from the formula.

    Returns:
        (G,) float64 sums over windows.
    """
    G, R, C = y.shape
    sums = np.zeros(G)
    whole, n_windows = _whole_windows(mask)
    if n_windows == 0:
        return sums
    b, nothing = np.empty((R, C)), np.zeros(C)
    columns, prefix = np.empty((2, C)), np.zeros((2, C + 1))
    top, end = _rows_with_windows(whole)
    for g in range(G):
        _scale_to_unit(y[g], mask, b)
        columns[:] = 0.0
        for r in range(top, end + WINDOW - 1):
            _move_own(b[r], b[r - WINDOW] if r >= top + WINDOW else nothing, columns)
            if r >= top + WINDOW - 1:
                _accumulate_own(columns, prefix)
                sums[g] += _sum_row_of_zero(prefix, whole[r - WINDOW + 1])
    return sums


@njit(cache=True, nogil=True)
def _ssim(a: Float64Array, b: Float64Array, whole: BoolArray) -> float:
    """Sum of SSIM of two scaled maps over the marked windows; row 0 of ``whole`` is their row 0."""
    C = a.shape[1]
    columns, prefix = np.zeros((4, C)), np.zeros((4, C + 1))
    total = 0.0
    for r in range(len(whole) + WINDOW - 1):
        if r < WINDOW:
            _enter(a[r], b[r], columns)
        else:
            _move(a[r], b[r], a[r - WINDOW], b[r - WINDOW], columns)
        if r >= WINDOW - 1:
            _accumulate(columns, prefix)
            total += _sum_row(prefix, whole[r - WINDOW + 1])
    return total


@njit(cache=True, nogil=True)
def _whole_windows(mask: BoolArray) -> tuple[BoolArray, int]:
    """Top-left corners of the windows entirely inside the mask, (R-6, C-6) bool; their number."""
    R, C = mask.shape
    whole = np.zeros((max(R - WINDOW + 1, 0), max(C - WINDOW + 1, 0)), dtype=np.bool_)
    height = np.zeros(C, dtype=np.int64)  # consecutive tissue bins upwards from this row
    n_windows = 0
    for r in range(R):
        run = 0  # consecutive columns up to this one whose height is at least a window
        for c in range(C):
            height[c] = height[c] + 1 if mask[r, c] else 0
            run = run + 1 if height[c] >= WINDOW else 0
            if run >= WINDOW:
                whole[r - WINDOW + 1, c - WINDOW + 1] = True
                n_windows += 1
    return whole, n_windows


@njit(cache=True, nogil=True)
def _rows_with_windows(whole: BoolArray) -> tuple[int, int]:
    """Half-open range of the rows of windows that contain at least one marked window."""
    top, end = 0, len(whole)
    while not whole[top].any():
        top += 1
    while not whole[end - 1].any():
        end -= 1
    return top, end


@njit(cache=True, nogil=True)
def _scale_to_unit(x: Array, mask: BoolArray, out: Float64Array) -> None:
    """Write ``x`` (R, C) scaled to 0–1 inside the mask, 0 outside it and where it is constant."""
    R, C = x.shape
    low, high = np.full(C, np.inf), np.full(C, -np.inf)  # per column, so that the loop vectorises
    for r in range(R):
        for c in range(C):
            v = np.float64(x[r, c])
            low[c] = v if mask[r, c] and v < low[c] else low[c]
            high[c] = v if mask[r, c] and v > high[c] else high[c]
    lowest, highest = low.min(), high.max()
    scale = 1.0 / (highest - lowest) if highest > lowest else 0.0
    for r in range(R):
        for c in range(C):
            out[r, c] = (x[r, c] - lowest) * scale if mask[r, c] else 0.0


@njit(**_FAST)
def _enter(x: Float64Array, y: Float64Array, columns: Float64Array) -> None:
    """Add a row of both maps, (C,), to the column sums (4, C): Σx, Σy, Σ(x² + y²), Σxy."""
    sx, sy, ss, sp = columns[0], columns[1], columns[2], columns[3]
    for c in range(x.size):
        a, b = x[c], y[c]
        sx[c] += a
        sy[c] += b
        ss[c] += a * a + b * b
        sp[c] += a * b


@njit(**_FAST)
def _move(
    x: Float64Array,
    y: Float64Array,
    x_old: Float64Array,
    y_old: Float64Array,
    columns: Float64Array,
) -> None:
    """Add the row that enters the window and subtract the row that leaves it, in one pass."""
    sx, sy, ss, sp = columns[0], columns[1], columns[2], columns[3]
    for c in range(x.size):
        a, b, d, e = x[c], y[c], x_old[c], y_old[c]
        sx[c] += a - d
        sy[c] += b - e
        ss[c] += (a * a + b * b) - (d * d + e * e)
        sp[c] += a * b - d * e


@njit(**_FAST)
def _accumulate(columns: Float64Array, prefix: Float64Array) -> None:
    """Cumulative sums of the columns (4, C) into ``prefix`` (4, C+1), whose first column is 0."""
    c0, c1, c2, c3 = columns[0], columns[1], columns[2], columns[3]
    p0, p1, p2, p3 = prefix[0], prefix[1], prefix[2], prefix[3]
    s0 = s1 = s2 = s3 = 0.0  # four independent chains hide the latency of an addition
    for c in range(c0.size):
        s0 += c0[c]
        s1 += c1[c]
        s2 += c2[c]
        s3 += c3[c]
        p0[c + 1] = s0
        p1[c + 1] = s1
        p2[c + 1] = s2
        p3[c + 1] = s3


@njit(**_FAST)
def _sum_row(prefix: Float64Array, whole: BoolArray) -> float:
    """Sum of SSIM over the marked windows of one row, ``whole`` (C-6,).

    Numerator and denominator are those of the paper times n³ (n − 1): with window sums X, Y,
    S = Σ(x² + y²) and P = Σxy the means are X/n and Y/n, and the sample covariance is
    (nP − XY) / (n (n − 1)).
    """
    n = WINDOW * WINDOW
    k1, k2 = C1 * n * n, C2 * n * (n - 1)
    m = whole.size
    x0, y0, s0, p0 = prefix[0, :m], prefix[1, :m], prefix[2, :m], prefix[3, :m]
    x1, y1, s1, p1 = prefix[0, WINDOW:], prefix[1, WINDOW:], prefix[2, WINDOW:], prefix[3, WINDOW:]
    total = 0.0
    for c in range(m):
        X, Y, S, P = x1[c] - x0[c], y1[c] - y0[c], s1[c] - s0[c], p1[c] - p0[c]
        XY, XX_YY = X * Y, X * X + Y * Y
        above = (2.0 * XY + k1) * (2.0 * (n * P - XY) + k2)
        below = (XX_YY + k1) * (n * S - XX_YY + k2)
        total += above / below if whole[c] else 0.0
    return total


@njit(**_FAST)
def _move_own(y: Float64Array, y_old: Float64Array, columns: Float64Array) -> None:
    """`_move` for y alone: (2, C) Σy, Σy²."""
    sy, syy = columns[0], columns[1]
    for c in range(y.size):
        b, e = y[c], y_old[c]
        sy[c] += b - e
        syy[c] += b * b - e * e


@njit(**_FAST)
def _accumulate_own(columns: Float64Array, prefix: Float64Array) -> None:
    """`_accumulate` for y alone: (2, C) into (2, C+1)."""
    c0, c1, p0, p1 = columns[0], columns[1], prefix[0], prefix[1]
    s0 = s1 = 0.0
    for c in range(c0.size):
        s0 += c0[c]
        s1 += c1[c]
        p0[c + 1] = s0
        p1[c + 1] = s1


@njit(**_FAST)
def _sum_row_of_zero(prefix: Float64Array, whole: BoolArray) -> float:
    """`_sum_row` for x = 0: numerator k₁k₂, denominator (Y² + k₁)(n Σy² − Y² + k₂)."""
    n = WINDOW * WINDOW
    k1, k2 = C1 * n * n, C2 * n * (n - 1)
    m = whole.size
    y0, s0, y1, s1 = prefix[0, :m], prefix[1, :m], prefix[0, WINDOW:], prefix[1, WINDOW:]
    total = 0.0
    for c in range(m):
        Y, S = y1[c] - y0[c], s1[c] - s0[c]
        below = (Y * Y + k1) * (n * S - Y * Y + k2)
        total += k1 * k2 / below if whole[c] else 0.0
    return total

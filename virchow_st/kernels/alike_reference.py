"""Plain NumPy reference for `virchow_st.kernels.alike`, in float64."""

from __future__ import annotations

import numpy as np

from virchow_st.types import Array, Float32Array, Int64Array


def alike_means(
    values: Float32Array,
    base: Float32Array,
    feature: Float32Array,
    number: Array,
    place: Int64Array,
    kernel: Float32Array,
    span: float,
    first: int,
    last: int,
    out: Float32Array,
) -> None:
    """Each bin by itself: all bins within reach, their weights, and the two sums."""
    n_rows, n_cols = number.shape
    reach = len(kernel) // 2
    for i in range(first, last):
        row, col = divmod(int(place[i]), n_cols)
        rows = np.arange(max(row - reach, 0), min(row + reach + 1, n_rows))
        cols = np.arange(max(col - reach, 0), min(col + reach + 1, n_cols))
        j = number[np.ix_(rows, cols)]
        gaussian = np.outer(
            *(kernel[x].astype(float) for x in (rows - row + reach, cols - col + reach))
        )
        there = j >= 0
        j = j[there]
        distance = ((feature[j].astype(float) - feature[i]) ** 2).sum(1)
        weight = gaussian[there] * np.maximum(1 - distance / span, 0) ** 2
        out[i] = (weight @ values[j].astype(float)) / (weight @ base[j].astype(float))

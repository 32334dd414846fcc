"""Plain NumPy reference for `virchow_st.kernels.alike`, in float64."""

from __future__ import annotations

import numpy as np

from virchow_st.types import Array, Float32Array, Float64Array, Int64Array


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
    for i in range(first, last):
        j, weight = _weights(i, feature, number, place, kernel, span)
        out[i] = (weight @ values[j].astype(float)) / (weight @ base[j].astype(float))


def alike_shares(
    base: Float32Array,
    feature: Float32Array,
    number: Array,
    place: Int64Array,
    kernel: Float32Array,
    span: float,
    side: int,
    first: int,
    last: int,
    own: Float32Array,
    of_cell: Float32Array,
) -> None:
    """Each bin by itself: the weights of all bins within reach, of its cell and of itself."""
    n_cols = number.shape[1]
    cell = place // n_cols // side * n_cols + place % n_cols // side
    for i in range(first, last):
        j, weight = _weights(i, feature, number, place, kernel, span)
        of_base = weight[:, None] * base[j]
        own[i] = of_base[j == i][0] / of_base.sum(0)
        of_cell[i] = of_base[cell[j] == cell[i]].sum(0) / of_base.sum(0)


def _weights(
    i: int,
    feature: Float32Array,
    number: Array,
    place: Int64Array,
    kernel: Float32Array,
    span: float,
) -> tuple[Array, Float64Array]:
    """The bins within reach of bin i, and their weights."""
    n_rows, n_cols = number.shape
    reach = len(kernel) // 2
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
    return j, gaussian[there] * np.maximum(1 - distance / span, 0) ** 2

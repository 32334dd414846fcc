"""Reads the factors of a window of a field piece by piece, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import zarr

from virchow_st.errors import FieldError
from virchow_st.field.layers import Layers, unpacked
from virchow_st.kernels.pooling import sum_pool
from virchow_st.types import BIN_UM, CELL_BINS, Float32Array, Int64Array

_CELL_UM = BIN_UM * CELL_BINS
_READ_BYTES = 64 << 20  # maps that are held at once

Window = tuple[int, int, int, int]
"""First row, first column, height and width, in bins of the scale that is read."""


def pieces(
    layers: Layers, factors: Int64Array, window: Window, scale_um: int
) -> Iterator[tuple[int, int, Float32Array]]:
    """The part of a window that lies in the field, in pieces of whole chunks where it can be.

    Args:
        layers: of the field.
        factors: k indices.
        window: may reach beyond the field.
        scale_um: side of the bins.

    Returns:
        An iterator over first row, first column and maps (k, h, w) float32 of each piece, UMIs per
        bin of ``scale_um``.

    Raises:
        ConfigError: no such scale.
        FieldError: the field is damaged.
    """
    row, col, height, width = window
    rows, cols = layers.size(scale_um)
    source_um = BIN_UM if scale_um < _CELL_UM else _CELL_UM
    factor = scale_um // source_um
    array = layers.maps[source_um]
    held = array.shape[0] if array.chunks[0] > 1 else max(1, len(factors))
    down, chunk = (max(1, side // factor) for side in array.chunks[1:])
    across = max(1, _READ_BYTES // (4 * held * down * factor**2) // chunk) * chunk
    for r0, r1 in cuts(max(row, 0), min(row + height, rows), down):
        for c0, c1 in cuts(max(col, 0), min(col + width, cols), across):
            at = slice(r0 * factor, r1 * factor), slice(c0 * factor, c1 * factor)
            maps = _read(layers, source_um, factors, *at)
            if factor > 1:
                maps = sum_pool(maps, factor).astype(np.float32)
            yield r0, c0, maps


def cuts(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges from ``start`` to ``stop``, cut at multiples of ``step``.

    >>> list(cuts(3, 9, 4))
    [(3, 4), (4, 8), (8, 9)]
    """
    while start < stop:
        end = min((start // step + 1) * step, stop)
        yield start, end
        start = end


def _read(
    layers: Layers, source_um: int, factors: Int64Array, rows: slice, cols: slice
) -> Float32Array:
    """Maps (k, h, w) float32, checked against the covered area."""
    name = f"{layers.name}_{source_um}um"
    with unpacked(layers.path, name):
        maps = _channels(layers.maps[source_um], factors, rows, cols)
    if source_um == BIN_UM:
        there = layers.read_labels(layers.covered, rows, cols)
    else:
        there = layers.covered_cells[rows, cols]
    if not np.array_equal(np.isfinite(maps.sum(axis=0)), there):
        raise FieldError(
            f"{layers.path}: {name}: expected finite values in the covered area and none "
            f"elsewhere; a piece at row {rows.start}, column {cols.start} has others; copy or "
            "predict the field again"
        )
    return maps


def _channels(array: zarr.Array, channels: Int64Array, rows: slice, cols: slice) -> Float32Array:
    if np.array_equal(channels, np.arange(array.shape[0])):
        return np.asarray(array[:, rows, cols])
    if len(channels) and (len(channels) == 1 or array.chunks[0] == 1):
        return np.stack([np.asarray(array[int(k), rows, cols]) for k in channels])
    return np.asarray(array[:, rows, cols])[channels]

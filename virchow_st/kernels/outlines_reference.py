"""Plain NumPy references of the kernels in `virchow_st.kernels.outlines`."""

from __future__ import annotations

from typing import Any

import numpy as np

from virchow_st.types import Array, Float64Array


def paint_centres(
    xy: Float64Array, rings: Array, polygons: Array, order: Array, labels: Array, shared: Array
) -> None:
    """Test the centre of every bin against every edge of every polygon."""
    row, col = np.indices(labels.shape)
    for p in order:
        inside = np.zeros(labels.shape, bool)
        for a, b in _edges(xy, rings, polygons, p):
            (xa, ya), (xb, yb) = sorted([a, b], key=lambda vertex: vertex[1])
            if ya != yb:
                x = xa + (row - ya) * (xb - xa) / (yb - ya)
                inside ^= (ya <= row) & (row < yb) & (x <= col)
        shared |= inside & (labels != 0)
        labels[inside] = p + 1


def covered_shares(
    xy: Float64Array, rings: Array, signs: Array, polygons: Array, n_rows: int, n_cols: int
) -> Float64Array:
    """Clip every polygon to every bin and take the area, (P, n_rows, n_cols)."""
    areas = np.zeros((len(polygons) - 1, n_rows, n_cols))
    for p in range(len(polygons) - 1):
        for ring in range(polygons[p], polygons[p + 1]):
            vertices = xy[rings[ring] : rings[ring + 1] - 1]
            for r in range(n_rows):
                for c in range(n_cols):
                    clipped = _clip(vertices, r, c)
                    areas[p, r, c] += signs[ring] * _area(clipped)
    return areas


def _clip(vertices: Array, r: int, c: int) -> Array:
    """The part of a ring within a bin (Sutherland & Hodgman 1974), (n, 2)."""
    for axis, limit, side in ((0, c - 0.5, 1), (0, c + 0.5, -1), (1, r - 0.5, 1), (1, r + 0.5, -1)):
        kept: list[Any] = []
        for a, b in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
            da, db = side * (a[axis] - limit), side * (b[axis] - limit)
            if da >= 0:
                kept.append(a)
            if (da < 0) != (db < 0):
                kept.append(a + (b - a) * da / (da - db))
        vertices = np.array(kept).reshape(-1, 2)
    return vertices


def _area(vertices: Array) -> float:
    x, y = vertices.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def expand_labels(labels: Array, rows: Array, cols: Array, ring: Array) -> Array:
    """Measure the distance to every labelled bin."""
    reach = int(np.max(rows**2 + cols**2))
    at_row, at_col = np.nonzero(labels)
    of = labels[at_row, at_col]
    out = labels.copy()
    for r, c in zip(*np.nonzero(labels == 0), strict=True):
        squared = (at_row - r) ** 2 + (at_col - c) ** 2
        if squared.size and squared.min() <= reach:
            out[r, c] = of[squared == squared.min()].min()
    return out


def add_shares(
    maps: Array, row: Array, col: Array, cell: Array, share: Array, sums: Float64Array
) -> None:
    """Add up maps over cells with `numpy.bincount`."""
    values = np.nan_to_num(maps[:, row, col].astype(np.float64)) * share
    for k, of_map in enumerate(values):
        sums[:, k] += np.bincount(cell, of_map, len(sums))


def known_sums(maps: Array) -> Float64Array:
    """Sum in float64, NaN as 0."""
    sums: Float64Array = np.nansum(maps, axis=(1, 2), dtype=np.float64)
    return sums


def _edges(xy: Float64Array, rings: Array, polygons: Array, p: int) -> Any:
    for ring in range(polygons[p], polygons[p + 1]):
        closed = xy[rings[ring] : rings[ring + 1]]
        yield from zip(closed[:-1].tolist(), closed[1:].tolist(), strict=True)

"""Which bins of a lattice polygons hold: by the bins' centres, or by the area they cover.

Polygons come as ragged arrays: ``xy`` (V, 2) float64 vertices ``(col, row)`` in centre-based bin
coordinates, ``rings`` (R + 1,) int64 limits of closed rings among the vertices (the last vertex of
a ring repeats its first), and ``polygons`` (P + 1,) int64 limits of polygons among the rings. A
polygon may have holes and several parts. `virchow_st.kernels.outlines_reference` tests every bin
against every edge.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from virchow_st.types import Array, BoolArray, Float64Array, Int64Array


@njit(cache=True, nogil=True)
def paint_centres(
    xy: Float64Array,
    rings: Int64Array,
    polygons: Int64Array,
    order: Int64Array,
    labels: Array,
    shared: BoolArray,
) -> None:
    """Give each bin whose centre lies in a polygon the polygon's number, counted from 1.

    A centre lies within where an odd number of edges (of all rings) cross its row at or left of it:
    the even-odd rule. A centre on an edge belongs to the polygon to the right of the edge, so that
    of two polygons with a common edge exactly one has it.

    Args:
        xy, rings, polygons: the P polygons.
        order: numbers of polygons, counted from 0, in the order of painting; later ones replace
            earlier ones.
        labels: (rows, columns) int32 to paint on, 0 where there is no polygon.
        shared: (rows, columns) bool, set True where a polygon replaces another.
    """
    n_rows, n_cols = labels.shape
    for p in order:
        first, last = rings[polygons[p]], rings[polygons[p + 1]]
        if last <= first:
            continue
        low, high = n_rows, 0
        for v in range(first, last):
            low = min(low, max(0, int(np.ceil(xy[v, 1]))))
            high = max(high, min(n_rows, int(np.ceil(xy[v, 1]))))
        if high <= low:
            continue
        start = np.zeros(high - low + 1, np.int64)
        for ring in range(polygons[p], polygons[p + 1]):
            for v in range(rings[ring], rings[ring + 1] - 1):
                top, bottom = min(xy[v, 1], xy[v + 1, 1]), max(xy[v, 1], xy[v + 1, 1])
                for r in range(max(low, int(np.ceil(top))), min(high, int(np.ceil(bottom)))):
                    start[r - low + 1] += 1
        for r in range(high - low):
            start[r + 1] += start[r]
        crossing = np.empty(start[-1])
        filled = start[:-1].copy()
        for ring in range(polygons[p], polygons[p + 1]):
            for v in range(rings[ring], rings[ring + 1] - 1):
                # From the upper end, so that a common edge is crossed at the same place by both.
                a, b = (v, v + 1) if xy[v, 1] <= xy[v + 1, 1] else (v + 1, v)
                ya, yb = xy[a, 1], xy[b, 1]
                for r in range(max(low, int(np.ceil(ya))), min(high, int(np.ceil(yb)))):
                    x = xy[a, 0] + (r - ya) * (xy[b, 0] - xy[a, 0]) / (yb - ya)
                    crossing[filled[r - low]] = x
                    filled[r - low] += 1
        for r in range(low, high):
            of_row = np.sort(crossing[start[r - low] : start[r - low + 1]])
            for i in range(0, len(of_row) - 1, 2):
                for c in range(
                    max(0, int(np.ceil(of_row[i]))), min(n_cols, int(np.ceil(of_row[i + 1])))
                ):
                    if labels[r, c] != 0:
                        shared[r, c] = True
                    labels[r, c] = p + 1


@njit(cache=True, nogil=True)
def covered_shares(
    xy: Float64Array,
    rings: Int64Array,
    signs: Array,
    polygons: Int64Array,
    n_rows: int,
    n_cols: int,
    first: int,
    last: int,
    bins: Int64Array,
    cell: Array,
    share: Array,
) -> int:
    """The share of each bin's area that polygons ``first`` to ``last - 1`` cover, exactly.

    By Green's theorem: an edge piece within a bin adds the area to the right of it in its row, with
    the sign of its direction; sums along the row are the covered areas.

    Args:
        xy, rings, polygons: the polygons, whose rings do not cross.
        signs: (R,) float64 of each ring: 1 where its vertices run so that it adds area (an outer
            ring from +col towards +row, a hole the other way), and −1 else.
        n_rows, n_cols: of the lattice; what lies beyond it is left out.
        first, last: half-open range of polygons.
        bins, cell, share: (N,) outputs: flat index of a bin, polygon counted from 0, share in
            (0, 1]; N must be at least the area of the polygons' boxes on the lattice.

    Returns:
        Number of entries written, by polygon and then by bin.
    """
    n = 0
    for p in range(first, last):
        v0, v1 = rings[polygons[p]], rings[polygons[p + 1]]
        if v1 <= v0:
            continue
        top, left, bottom, right = np.inf, np.inf, -np.inf, -np.inf
        for v in range(v0, v1):
            left, right = min(left, xy[v, 0]), max(right, xy[v, 0])
            top, bottom = min(top, xy[v, 1]), max(bottom, xy[v, 1])
        # Corner-based from here on: bin c spans [c, c + 1).
        r0, r1 = max(0, int(np.floor(top + 0.5))), min(n_rows, int(np.floor(bottom + 0.5)) + 1)
        c0, c1 = max(0, int(np.floor(left + 0.5))), min(n_cols, int(np.floor(right + 0.5)) + 1)
        if r1 <= r0 or c1 <= c0:
            continue
        w = c1 - c0
        area = np.zeros((r1 - r0, w + 1))
        for ring in range(polygons[p], polygons[p + 1]):
            for v in range(rings[ring], rings[ring + 1] - 1):
                xa, ya = xy[v, 0] + 0.5 - c0, xy[v, 1] + 0.5 - r0
                xb, yb = xy[v + 1, 0] + 0.5 - c0, xy[v + 1, 1] + 0.5 - r0
                if ya == yb:
                    continue
                sign = -signs[ring]  # edges that run towards +row bound a ring on its right
                if ya > yb:
                    xa, ya, xb, yb, sign = xb, yb, xa, ya, -sign
                slope = (xb - xa) / (yb - ya)
                for r in range(max(0, int(np.floor(ya))), min(r1 - r0, int(np.floor(yb)) + 1)):
                    y_in, y_out = max(ya, float(r)), min(yb, r + 1.0)
                    if y_out <= y_in:
                        continue
                    x_in, x_out = xa + (y_in - ya) * slope, xa + (y_out - ya) * slope
                    _add_piece(area[r], x_in, x_out, sign * (y_out - y_in), w)
        for r in range(r1 - r0):
            total = 0.0
            for c in range(w):
                total += area[r, c]
                if total > 1e-9:
                    bins[n] = (r0 + r) * n_cols + c0 + c
                    cell[n] = p
                    share[n] = min(1.0, total)
                    n += 1
    return n


@njit(cache=True, nogil=True)
def _add_piece(row: Float64Array, x_in: float, x_out: float, height: float, w: int) -> None:
    """Add an edge piece within one row of bins: the height to its right, in part in its bins."""
    left, right = min(x_in, x_out), max(x_in, x_out)
    if right <= 0:
        row[0] += height
        return
    if left >= w:
        return
    width = right - left
    if width < 1e-12:
        c = int(np.floor(left))
        row[c] += height * (c + 1 - left)
        row[c + 1] += height * (left - c)
        return
    if left < 0:
        row[0] += height * (-left / width)
        height *= right / width
        left, width = 0.0, right
    c = int(np.floor(left))
    while c < w and c < right:
        a, b = max(left, float(c)), min(right, c + 1.0)
        part = height * (b - a) / width
        middle = (a + b) / 2 - c
        row[c] += part * (1 - middle)
        row[c + 1] += part * middle
        c += 1


@njit(cache=True, nogil=True)
def expand_labels(labels: Array, rows: Array, cols: Array, ring: Array) -> Array:
    """Give each bin without a label the label of the nearest labelled bin within reach.

    Args:
        labels: (R, C) int32, 0 = none.
        rows, cols: (N,) offsets to look at, by increasing distance.
        ring: (N,) number of the distance of each, so that equal distances are found together; of
            labels equally near, the smallest is taken.

    Returns:
        (R, C) int32; bins that have a label keep it.
    """
    R, C = labels.shape
    out = labels.copy()
    N = len(rows)
    for r in range(R):
        for c in range(C):
            if labels[r, c] != 0:
                continue
            found, at = 0, -1
            for i in range(N):
                if found and ring[i] != at:
                    break
                y, x = r + rows[i], c + cols[i]
                if 0 <= y < R and 0 <= x < C and labels[y, x] > 0:
                    if found == 0 or labels[y, x] < found:
                        found = labels[y, x]
                    at = ring[i]
            out[r, c] = found
    return out


@njit(cache=True, nogil=True)
def add_shares(
    maps: Array, row: Array, col: Array, cell: Array, share: Array, sums: Float64Array
) -> None:
    """Add up maps over cells: ``sums[cell, k] += share · maps[k, row, col]``.

    Args:
        maps: (K, h, w) float; NaN counts as 0.
        row, col: (M,) places on the maps.
        cell: (M,) row of ``sums`` of each place.
        share: (M,) of the bin that belongs to the cell.
        sums: (n, K) float64, incremented.
    """
    for k in range(maps.shape[0]):
        for m in range(len(row)):
            value = maps[k, row[m], col[m]]
            if value == value:
                sums[cell[m], k] += share[m] * value


@njit(cache=True, nogil=True)
def known_sums(maps: Array) -> Float64Array:
    """Sum of each map over the places where it is not NaN.

    Args:
        maps: (K, h, w) float.

    Returns:
        (K,) float64.

    Example:
        >>> known_sums(np.array([[[1.0, np.nan], [2.0, 4.0]]])).tolist()
        [7.0]
    """
    K, h, w = maps.shape
    sums = np.zeros(K)
    for k in range(K):
        for r in range(h):
            of_row = 0.0
            for c in range(w):
                value = maps[k, r, c]
                if value == value:
                    of_row += value
            sums[k] += of_row
    return sums

"""Assigns bins to outlines: by the bins' centres, or by the area that an outline covers.

Vertices are mapped to the lattice by the inverse homography, under which straight edges stay
straight, so that both rules are exact.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import shapely

from virchow_st.errors import SlideError
from virchow_st.kernels.outlines import covered_shares, expand_labels, paint_centres
from virchow_st.slide.cells.cell_map import CellMap, without_empty
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.cells.outlines import Outlines, ragged
from virchow_st.types import BIN_UM, Array, Float64Array, Int64Array

_ENTRIES_AT_ONCE = 1 << 22
_OVERFULL = 1 + 1e-6


def by_centres(outlines: Outlines, lattice: Lattice) -> CellMap:
    """Give each bin to the outline that its centre lies in.

    A bin that several outlines claim goes to the smallest of them, of equal ones to the first in
    the file. A centre on an edge between two outlines goes to one of them.
    """
    shapes = _on_lattice(outlines, lattice)
    xy, rings, limits, _ = ragged(shapes)
    # Painted from the largest on; of equal ones, the first in the file last.
    order = np.lexsort((-np.arange(len(shapes)), -shapely.area(shapes)))
    labels = np.zeros(lattice.shape, np.int32)
    shared = np.zeros(lattice.shape, bool)
    paint_centres(xy, rings, limits, order, labels, shared)
    cells = from_labels(labels, lattice, outlines.ids, outlines.classes)
    return _with_outlines(cells, shapes, outlines, int(shared.sum()))


def by_area(outlines: Outlines, lattice: Lattice) -> CellMap:
    """Give each bin to the outlines by the share of its area that they cover.

    Where outlines overlap so that the shares of a bin exceed 1, they are divided by their sum.
    """
    shapes = _on_lattice(outlines, lattice)
    xy, rings, limits, outer = ragged(shapes)
    signs = np.where(outer, 1.0, -1.0) * np.sign(_signed_areas(xy, rings))
    box = shapely.bounds(shapes)
    n_rows, n_cols = lattice.shape
    size = np.prod(
        [
            np.clip(np.floor(box[:, i + 2] + 1.5), 0, n) - np.clip(np.floor(box[:, i] + 0.5), 0, n)
            for i, n in ((0, n_cols), (1, n_rows))
        ],
        axis=0,
    ).astype(np.int64)
    parts = []
    first = 0
    while first < len(shapes):
        room = np.cumsum(size[first:])
        last = first + max(1, int(np.searchsorted(room, _ENTRIES_AT_ONCE, "right")))
        n = int(room[last - first - 1])
        bins, cell, share = np.empty(n, np.int64), np.empty(n, np.int32), np.empty(n)
        n = covered_shares(xy, rings, signs, limits, n_rows, n_cols, first, last, bins, cell, share)
        parts.append((bins[:n].copy(), cell[:n].copy(), share[:n].copy()))
        first = last
    bins, cell, share = (np.concatenate(of) for of in zip(*parts, strict=True))
    order = np.argsort(bins, kind="stable")
    bins, cell, share = bins[order], cell[order], share[order]
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    total = np.add.reduceat(share, starts) if len(starts) else share
    overfull = total > _OVERFULL
    share /= np.repeat(np.where(overfull, total, 1.0), np.diff(np.append(starts, len(bins))))
    cells = CellMap(
        lattice, outlines.ids, outlines.classes, bins, cell, share.astype(np.float32), None
    )
    return _with_outlines(cells, shapes, outlines, int(overfull.sum()))


def from_labels(
    labels: Array, lattice: Lattice, ids: tuple[str, ...], classes: tuple[str, ...] = ()
) -> CellMap:
    """Cells from (R, C) labels on the lattice: 0 none, ``i + 1`` the cell ``ids[i]``."""
    bins = np.flatnonzero(labels)
    cell = labels.ravel()[bins].astype(np.int32) - np.int32(1)
    share = np.ones(len(bins), np.float32)
    return CellMap(lattice, ids, classes or ("",) * len(ids), bins, cell, share, None)


def expanded(cells: CellMap, reach_um: float) -> CellMap:
    """Let every cell grow by ``reach_um`` where no other cell is nearer.

    A bin without a cell goes to the cell of the nearest bin that has one, measured between centres,
    if that is within reach; of equally near ones to the first cell. No cell takes bins of another.
    """
    reach = reach_um / BIN_UM
    side = int(np.floor(reach))
    rows, cols = (grid.ravel() for grid in np.mgrid[-side : side + 1, -side : side + 1])
    squared = rows**2 + cols**2
    order = np.argsort(squared, kind="stable")
    order = order[squared[order] <= reach**2 + 1e-9]
    grown = expand_labels(cells.labels, rows[order], cols[order], squared[order])
    made = from_labels(grown, cells.lattice, cells.ids, cells.classes)
    return replace(cells, bins=made.bins, cell=made.cell, share=made.share, outlines=None)


def _on_lattice(outlines: Outlines, lattice: Lattice) -> Array:
    """The outlines in bin coordinates."""
    shapes = shapely.transform(outlines.polygons, lattice.to_bins)
    if not np.isfinite(shapely.get_coordinates(shapes)).all():
        raise SlideError(
            f"{outlines.path}: expected full-resolution px of {lattice.name}; an outline lies "
            "beyond what its homography maps; give the outlines of this slide"
        )
    return shapes


def _with_outlines(cells: CellMap, shapes: Array, of: Outlines, n_shared: int) -> CellMap:
    notes = dict(of.passed_over)
    if of.n_repaired:
        notes["outlines that touched themselves, repaired"] = of.n_repaired
    return without_empty(replace(cells, outlines=shapes, n_shared=n_shared, notes=notes))


def _signed_areas(xy: Float64Array, rings: Int64Array) -> Float64Array:
    """Twice the area of each ring by the shoelace formula, positive from +col towards +row."""
    x, y = (xy - xy.mean(axis=0)).T
    cross = x[:-1] * y[1:] - x[1:] * y[:-1]
    cross = np.append(cross, 0.0)
    cross[rings[1:] - 1] = 0.0  # from one ring's end to the next one's begin
    return np.add.reduceat(cross, rings[:-1])

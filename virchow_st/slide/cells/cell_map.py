"""Cells or regions on a lattice: which bins belong to each, and by what share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import shapely
from scipy import sparse

from virchow_st.slide.cells.lattice import Lattice
from virchow_st.types import BIN_UM, Array, Float32Array, Float64Array, Int64Array


@dataclass(frozen=True, eq=False)
class CellMap:
    """n cells (or regions) on the (R, C) bins of a lattice.

    Attributes:
        lattice: the bins.
        ids: names, each once.
        classes: class of each, ``""`` where it has none.
        bins: (M,) int64, ``row * C + col`` of bins that belong to cells, rising.
        cell: (M,) int32, the cell of each, from 0.
        share: (M,) float32, the share of the bin that belongs to the cell: 1 where bins are given
            by their centres; those of one bin add up to at most 1.
        outlines: (n,) shapely polygons in bin coordinates of the lattice (centre-based col, row),
            as drawn; None where the cells were given as bins or expanded.
        n_shared: bins that more than one outline claimed.
        n_elsewhere: cells of the source without a bin on the lattice, which are left out.
        notes: what else the source held: what → how many.
    """

    lattice: Lattice
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    bins: Int64Array
    cell: Array
    share: Float32Array
    outlines: Array | None
    n_shared: int = 0
    n_elsewhere: int = 0
    notes: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def labels(self) -> Array:
        """(R, C) int32: number of the bin's cell, counted from 1; 0 = none.

        Where bins are shared, the cell with the largest share.
        """
        labels = np.zeros(self.lattice.shape, np.int32)
        order = np.argsort(self.share, kind="stable")
        labels.ravel()[self.bins[order]] = self.cell[order] + 1
        return labels

    @property
    def n_bins(self) -> Float64Array:
        """(n,) bins of each cell, shares added up; 4 µm² each."""
        return np.bincount(self.cell, self.share, len(self)).astype(np.float64)

    @cached_property
    def centroids(self) -> Float64Array:
        """(n, 2) ``(col, row)`` of each cell's middle: of its outline, or the mean of its bins."""
        if self.outlines is not None:
            return shapely.get_coordinates(shapely.centroid(self.outlines))
        row, col = np.divmod(self.bins, self.lattice.shape[1])
        sums = [np.bincount(self.cell, self.share * of, len(self)) for of in (col, row)]
        middle: Float64Array = np.stack(sums, axis=1) / self.n_bins[:, None]
        return middle

    @property
    def area_um2(self) -> Float64Array:
        """(n,) µm², of the outlines where there are any, else of the bins."""
        if self.outlines is not None:
            return shapely.area(self.outlines) * float(BIN_UM**2)
        return self.n_bins * BIN_UM**2

    def mean_of(self, mask: Array) -> Float64Array:
        """(n,) share of each cell that lies where a mask (R, C) is True."""
        inside = mask.ravel()[self.bins].astype(np.float64)
        return np.bincount(self.cell, self.share * inside, len(self)) / self.n_bins

    def polygons_um(self) -> Array:
        """(n,) shapely polygons in µm, in the frame of `Lattice.to_um`.

        Where there are no outlines, those of the bins.
        """
        shapes = bin_outlines(self) if self.outlines is None else self.outlines
        return shapely.transform(shapes, self.lattice.to_um)

    def matrix(self) -> sparse.csr_array:
        """(n, R · C) sparse shares: times counts by bin, counts by cell."""
        rows, cols = self.lattice.shape
        values = self.share, (self.cell, self.bins)
        return sparse.csr_array(values, shape=(len(self), rows * cols))


def bin_outlines(cells: CellMap) -> Array:
    """The outline of every cell's bins, in bin coordinates, (n,) shapely polygons."""
    n_cols = cells.lattice.shape[1]
    order = np.argsort(cells.cell, kind="stable")
    cell, at = cells.cell[order], cells.bins[order]
    row, col = np.divmod(at, n_cols)
    # Bins side by side in a row make one box.
    begins = np.ones(len(at), bool)
    begins[1:] = (cell[1:] != cell[:-1]) | (at[1:] != at[:-1] + 1) | (row[1:] != row[:-1])
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(at)) - 1
    boxes = shapely.box(col[first] - 0.5, row[first] - 0.5, col[last] + 0.5, row[last] + 0.5)
    ends = np.searchsorted(cell[first], np.arange(len(cells) + 1))
    shapes = [shapely.union_all(boxes[a:b]) for a, b in pairwise(ends)]
    return np.array(shapes, dtype=object)


def without_empty(cells: CellMap) -> CellMap:
    """The same without the cells that have no bin on the lattice, which are counted."""
    there = np.zeros(len(cells), bool)
    there[cells.cell] = True
    if there.all():
        return cells
    number = np.cumsum(there, dtype=np.int32) - np.int32(1)
    kept = np.flatnonzero(there)
    return replace(
        cells,
        ids=tuple(cells.ids[i] for i in kept),
        classes=tuple(cells.classes[i] for i in kept),
        cell=number[cells.cell],
        outlines=None if cells.outlines is None else cells.outlines[kept],
        n_elsewhere=cells.n_elsewhere + int((~there).sum()),
    )

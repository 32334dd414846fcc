"""Sums of maps and of counts over cells, in one pass over the slide and bounded memory.

Letters: n cells, K maps (factors, or genes held directly), G genes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from virchow_st.kernels.outlines import add_shares, known_sums
from virchow_st.runtime.progress import Progress
from virchow_st.slide.cells.cell_map import CellMap
from virchow_st.store.reader import Store
from virchow_st.types import PATCH_BINS, PATCH_POSITIONS, Array, BoolArray, Float64Array, Int64Array


@dataclass(frozen=True, eq=False)
class MapSums:
    """Sums over cells, (n, K) float64, and over the whole slide, (K,) float64."""

    of_cells: Float64Array
    of_slide: Float64Array


@dataclass(frozen=True, eq=False)
class CountSums:
    """UMIs of cells.

    Attributes:
        of_cells: (n, G) float32 CSR; whole numbers unless cells share bins.
        of_slide: UMIs of the G genes in all patches.
        counted: (R, C) bool, bins with a UMI of any of the store's genes.
    """

    of_cells: sparse.csr_matrix
    of_slide: float
    counted: BoolArray


def entries_within(cells: CellMap, row0: int, col0: int, height: int, width: int) -> Array:
    """Indices of the entries of a `CellMap` whose bins lie in a rectangle of its lattice."""
    n_cols = cells.lattice.shape[1]
    start, stop = np.searchsorted(cells.bins, [row0 * n_cols, (row0 + height) * n_cols])
    chosen = np.arange(start, stop)
    if width < n_cols:
        col = cells.bins[start:stop] % n_cols
        chosen = chosen[(col >= col0) & (col < col0 + width)]
    return chosen


def map_sums(blocks: Iterable[tuple[int, int, Array]], cells: CellMap, n_maps: int) -> MapSums:
    """Add up maps over cells, block by block.

    Args:
        blocks: first row, first column and maps (K, h, w) float32 of each block; NaN counts as 0.
        cells: cells on the lattice of the blocks.
        n_maps: K.
    """
    sums, total = np.zeros((len(cells), n_maps)), np.zeros(n_maps)
    n_cols = cells.lattice.shape[1]
    for row0, col0, maps in blocks:
        total += known_sums(maps)
        at = entries_within(cells, row0, col0, *maps.shape[1:])
        if not len(at):
            continue
        row, col = np.divmod(cells.bins[at], n_cols)
        # Sums of the block's own cells alone, which stay in the processor's cache.
        present, local = np.unique(cells.cell[at], return_inverse=True)
        of_block = np.zeros((len(present), n_maps))
        add_shares(maps, row - row0, col - col0, local, cells.share[at], of_block)
        sums[present] += of_block
    return MapSums(sums, total)


def count_sums(
    store: Store, cells: CellMap, genes: Int64Array | None, progress: Progress
) -> CountSums:
    """Add up a store's counts over cells, patch by patch.

    Memory grows with the non-zero entries of cells × genes, about 24 bytes each at the end.

    Args:
        store: of the slide.
        cells: on a lattice that begins with the store's first patch.
        genes: indices of G genes; every gene if None.
        progress: receives the number of patches.
    """
    lattice = cells.lattice
    n_genes = len(store.genes) if genes is None else len(genes)
    counted = np.zeros(lattice.shape, bool)
    gene, cell, count = [], [], []
    total = 0.0
    for n, patch in enumerate(store):
        info = patch.info
        row0, col0 = info.row0 - lattice.row0, info.col0 - lattice.col0
        every = patch.sparse_counts
        square = np.zeros(PATCH_POSITIONS, bool)
        square[every.positions] = True
        counted[row0 : row0 + PATCH_BINS, col0 : col0 + PATCH_BINS] = square.reshape(
            PATCH_BINS, PATCH_BINS
        )
        counts = patch.counts(genes)
        total += float(counts.sum(dtype=np.float64))
        at = entries_within(cells, row0, col0, PATCH_BINS, PATCH_BINS)
        if len(at):
            row, col = np.divmod(cells.bins[at], lattice.shape[1])
            present, local = np.unique(cells.cell[at], return_inverse=True)
            position = (row - row0) * PATCH_BINS + col - col0
            shares = sparse.csr_array(
                (cells.share[at].astype(np.float64), (position, local)),
                shape=(PATCH_POSITIONS, len(present)),
            )
            of_patch = (counts.astype(np.float64) @ shares).tocoo()
            gene.append(of_patch.row.astype(np.int32))
            cell.append(present[of_patch.col].astype(np.int32))
            count.append(of_patch.data.astype(np.float32))
        progress.step(n + 1, len(store), "patches")
    if not gene:
        empty = sparse.csr_matrix((len(cells), n_genes), dtype=np.float32)
        return CountSums(empty, total, counted)
    values = np.concatenate(count), (np.concatenate(cell), np.concatenate(gene))
    summed = sparse.csr_matrix(values, shape=(len(cells), n_genes), dtype=np.float32)
    summed.sum_duplicates()
    return CountSums(summed, total, counted)

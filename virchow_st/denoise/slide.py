"""The counts of a whole slide by 2 µm tissue bin, on the one lattice that its patches lie on.

Letters: n tissue bins, G genes, (R, C) bins of the lattice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from virchow_st.denoise.failed import check_share, dead_lines, read_mask
from virchow_st.errors import ConfigError
from virchow_st.metrics.stripes import Stripes, estimate_stripes
from virchow_st.run.panel import Panel
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.store.reader import Store
from virchow_st.training.rows import MOST_ROWS, SparseRows
from virchow_st.types import BIN_UM, PATCH_BINS, PATCH_POSITIONS, Array, BoolArray, Int64Array

LEAST_UMIS = 10
"""Genes with fewer UMIs in the tissue of all patches are left out of the field."""
_COARSE_BINS = 8  # 2 µm bins along a 16 µm bin
_LISTED = 8
_DECIMALS = 4  # in which efficiencies are used and written


@dataclass(frozen=True, eq=False)
class SlideCounts:
    """The counts of a slide, whose rows are its observed 2 µm tissue bins, patch by patch.

    Attributes:
        panel: The G genes, those of the store with at least `LEAST_UMIS`.
        rows: Counts of the n observed tissue bins; their exposure is the efficiency of row and
            column, times the share of the UMIs that was kept.
        place: (n,) int64, ``row * C + col`` of each bin on the lattice.
        unseen: (m,) int64, the same of the tissue bins whose counts failed.
        tissue: (R, C) bool, True where a patch has tissue; R and C are multiples of 128.
        corner: array_row and array_col of the lattice's first bin.
        dead: Array rows and columns that were found dead.
        stripes: Efficiencies of the R rows and of the C columns; exactly 1 where there are no
            stripes.
    """

    panel: Panel
    rows: SparseRows
    place: Int64Array
    unseen: Int64Array
    tissue: BoolArray
    corner: tuple[int, int]
    dead: tuple[list[int], list[int]]
    stripes: tuple[Stripes, Stripes]

    def with_rows(self, rows: SparseRows) -> SlideCounts:
        """The same bins and genes with other counts, such as a part of the UMIs."""
        return replace(self, rows=rows)

    def at_16um(self, seed: int, most: int = MOST_ROWS) -> SparseRows:
        """Counts of 16 µm bins of which at least half is observed tissue.

        Args:
            seed: Draws the bins where there are more than ``most``.
            most: Largest number of bins.

        Raises:
            ConfigError: No 16 µm bin is half tissue.
        """
        row, col = np.divmod(self.place, self.tissue.shape[1])
        n_cols = self.tissue.shape[1] // _COARSE_BINS
        cell = row // _COARSE_BINS * n_cols + col // _COARSE_BINS
        size = np.bincount(cell)
        chosen = np.flatnonzero(2 * size >= _COARSE_BINS**2)
        if not len(chosen):
            raise ConfigError(
                "tissue: expected bins of 16 µm that are at least half tissue; found none; extract "
                "the slide with a smaller --min-tissue"
            )
        if len(chosen) > most:
            rng = np.random.default_rng(seed)
            chosen = np.sort(rng.choice(chosen, most, replace=False))
        number = np.full(len(size), -1)
        number[chosen] = np.arange(len(chosen))
        bins = np.flatnonzero(number[cell] >= 0)
        into = csr_matrix(
            (np.ones(len(bins), np.float32), (number[cell[bins]], np.arange(len(bins))))
        )
        fine = self.rows.taken(bins)
        shape = len(bins), fine.n_genes
        summed = into @ csr_matrix((fine.count, fine.gene, fine.indptr), shape)
        summed.sort_indices()
        return SparseRows(
            indptr=summed.indptr.astype(np.int64),
            gene=summed.indices.astype(np.int32),
            count=summed.data.astype(np.float32),
            exposure=np.bincount(number[cell[bins]], fine.exposure, len(chosen)).astype(np.float64),
            n_genes=fine.n_genes,
        )


def read_slide(
    store: Store, progress: Progress = SILENT, failed: Path | None = None
) -> SlideCounts:
    """Read the counts of all patches of a store.

    Counts outside tissue are left out, and so are those of bins that failed: dead rows and columns
    (`virchow_st.denoise.failed`), and what a mask marks. Memory grows with the non-zero counts, 8
    bytes each, and with the tissue bins, 24 bytes each.

    Args:
        store: The slide's store.
        progress: Receives the number of patches read, and which rows and columns are dead.
        failed: Image that marks further failed bins, see `virchow_st.denoise.failed.read_mask`.

    Raises:
        ConfigError: The store has no patches, no tissue, or no gene with enough UMIs; the mask
            cannot be read; or more than half of the tissue failed.
        StoreError: The store is damaged, or its patches do not lie on one lattice.
    """
    infos = store.patch_table
    if not infos:
        raise ConfigError(f"{store.path}: expected patches to denoise; found none")
    starts = np.array([(info.row0, info.col0) for info in infos], np.int64)
    first = starts.min(axis=0)
    if ((starts - first) % PATCH_BINS).any():
        raise ConfigError(
            f"{store.path}: expected patches side by side, every {PATCH_BINS} bins of "
            f"{BIN_UM} µm; found others; extract the slide again"
        )
    n_rows, n_cols = (int(n) for n in starts.max(axis=0) - first + PATCH_BINS)
    tissue = np.zeros((n_rows, n_cols), bool)
    every = np.arange(len(store.genes))
    sizes, genes, counts, places = [], [], [], []
    for n, (patch, (row, col)) in enumerate(zip(store, (starts - first).tolist(), strict=True)):
        mask = patch.tissue_mask
        tissue[row : row + PATCH_BINS, col : col + PATCH_BINS] = mask
        inside = np.flatnonzero(mask)
        bin_row, bin_col = np.divmod(inside, PATCH_BINS)
        places.append((row + bin_row) * n_cols + col + bin_col)
        stored = patch.panel_counts(every)
        gene, position, count = _by_bin(stored.gene, stored.position, stored.count, mask)
        sizes.append(np.bincount(position, minlength=PATCH_POSITIONS)[inside])
        genes.append(gene)
        counts.append(count)
        progress.step(n + 1, len(store), "patches read")
    size, gene = np.concatenate(sizes), np.concatenate(genes)
    rows = SparseRows(
        indptr=np.concatenate([[0], np.cumsum(size)]).astype(np.int64),
        gene=gene,
        count=np.concatenate(counts),
        exposure=np.ones(len(size)),
        n_genes=len(every),
    )
    place, corner = np.concatenate(places), (int(first[0]), int(first[1]))
    umis = np.zeros(tissue.shape)
    umis.ravel()[place] = rows.totals
    given = np.zeros_like(tissue) if failed is None else read_mask(failed, corner, tissue.shape)
    dead_rows, dead_cols = dead_lines(umis, tissue & ~given)
    bad = given | dead_rows[:, None] | dead_cols
    check_share(bad, tissue, str(store.path if failed is None else failed))
    dead = (
        _lines(dead_rows, corner[0], "rows", progress),
        _lines(dead_cols, corner[1], "columns", progress),
    )
    by_row, by_col = (s.rounded(_DECIMALS) for s in estimate_stripes(umis, tissue & ~bad))
    exposure = np.outer(by_row.efficiency, by_col.efficiency).ravel()[place]
    rows = replace(rows, exposure=exposure)
    is_bad = bad.ravel()[place]
    unseen = place[is_bad]
    if len(unseen):
        rows, place = rows.taken(np.flatnonzero(~is_bad)), place[~is_bad]
    kept = np.flatnonzero(rows.gene_totals >= LEAST_UMIS)
    if not len(kept):
        raise ConfigError(
            f"{store.path}: expected a gene with at least {LEAST_UMIS} UMIs in tissue; the most "
            f"are {rows.gene_totals.max(initial=0):.0f}; such counts cannot be denoised"
        )
    ids, symbols = store.genes.ids, store.genes.symbols
    panel = Panel(tuple(ids[g] for g in kept), tuple(symbols[g] for g in kept))
    stripes = by_row, by_col
    return SlideCounts(panel, _of_genes(rows, kept), place, unseen, tissue, corner, dead, stripes)


def _lines(dead: BoolArray, first: int, name: str, progress: Progress) -> list[int]:
    """Numbers of the dead rows or columns of the array, which are told."""
    lines: list[int] = (np.flatnonzero(dead) + first).tolist()
    if lines:
        progress.note(f"dead {name}, filled from their neighbours: {_listed(lines)}")
    return lines


def _listed(lines: list[int]) -> str:
    more = f" and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return ", ".join(map(str, lines[:_LISTED])) + more


def _by_bin(
    gene: Array, position: Array, count: Array, mask: BoolArray
) -> tuple[Array, Array, Array]:
    """Counts in tissue sorted by position and gene, from counts sorted by gene and position."""
    inside = mask.ravel()[position]
    gene, position, count = gene[inside], position[inside], count[inside]
    order = np.argsort(position, kind="stable")
    return (
        gene[order].astype(np.int32),
        position[order].astype(np.int64),
        count[order].astype(np.float32),
    )


def _of_genes(rows: SparseRows, genes: Int64Array) -> SparseRows:
    """The counts of some genes, in rising order."""
    number = np.full(rows.n_genes, -1, np.int32)
    number[genes] = np.arange(len(genes))
    there = number[rows.gene] >= 0
    ends = np.concatenate([[0], np.cumsum(there)])
    return SparseRows(
        ends[rows.indptr], number[rows.gene[there]], rows.count[there], rows.exposure, len(genes)
    )

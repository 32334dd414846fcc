"""Streams the count matrix once and sorts its UMIs into patches, gene by gene."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from virchow_st.errors import SlideError
from virchow_st.kernels.sparse import (
    NOT_TISSUE,
    OUTSIDE_PATCHES,
    close_gaps,
    scatter_counts,
    sort_patches,
)
from virchow_st.slide.matrix import CountMatrix
from virchow_st.slide.positions import BinPositions
from virchow_st.types import PATCH_BINS, Array, Int64Array


class PatchOrigins(Protocol):
    """Where patches lie: array_row and array_col of their first bins, (P,) int32 each."""

    @property
    def row0(self) -> Array: ...  # noqa: D102

    @property
    def col0(self) -> Array: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class PatchCounts:
    """The UMI counts of patches, CSR-like by patch.

    Attributes:
        indptr: (P+1,) int64 where each patch's entries begin, and the last end.
        gene: (nnz,) uint16, or uint32 beyond 65,536 genes; rows of the slide's gene table.
        position: (nnz,) uint16, ``row * 128 + col`` in the patch.
        count: (nnz,) uint32, at least 1.
        gene_totals: (G,) int64 UMIs over all tissue bins of the slide, in patches or not.

    Within a patch, entries are sorted by (gene, position), and none comes twice.
    """

    indptr: Int64Array
    gene: Array
    position: Array
    count: Array
    gene_totals: Int64Array

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, patch: int) -> tuple[Array, Array, Array]:
        """Gene, position and count of one patch, (n,) views."""
        entries = slice(int(self.indptr[patch]), int(self.indptr[patch + 1]))
        return self.gene[entries], self.position[entries], self.count[entries]

    def __iter__(self) -> Iterator[tuple[Array, Array, Array]]:
        return (self[patch] for patch in range(len(self)))

    @property
    def total_umi(self) -> int:
        """UMIs over all tissue bins of the slide, in patches or not."""
        return int(self.gene_totals.sum())


def read_patch_counts(
    matrix: CountMatrix, bins: BinPositions, patches: PatchOrigins
) -> PatchCounts:
    """Read the counts of tissue bins in patches; memory is 8 bytes an entry and about 0.3 GB.

    Args:
        matrix: the matrix; it is streamed through once, in whatever column order it has.
        bins: the bins the matrix has to lie on.
        patches: patches that do not overlap.

    Raises:
        SlideError: the matrix is damaged, holds no counts, or disagrees with the bins.
    """
    indptr = matrix.read_indptr()
    patch_of_column, position_of_column, room = _place_columns(matrix, bins, patches, indptr)
    n_genes = len(matrix.genes)
    gene = np.empty(room[-1], np.uint16 if n_genes <= 1 << 16 else np.uint32)
    position = np.empty(room[-1], np.uint16)
    count = np.empty(room[-1], np.uint32)
    gene_totals = np.zeros(n_genes, np.int64)
    cursor, column = room[:-1].copy(), 0
    for start, features, values in matrix.read_entries():
        column = scatter_counts(
            start,
            column,
            features,
            values,
            indptr,
            matrix.gene_of_feature,
            patch_of_column,
            position_of_column,
            cursor,
            gene,
            position,
            count,
            gene_totals,
        )
    # Features that are no genes and stored zeros left room unused.
    filled = close_gaps(room, cursor, gene, position, count)
    nnz = int(filled[-1])
    gene, position, count = gene[:nnz], position[:nnz], count[:nnz]
    if repeated := sort_patches(filled, gene, position, count, n_genes):
        raise SlideError(
            f"{matrix.path}: expected a gene once in a bin; {repeated} entries come again; "
            "the file is damaged: copy it again from the Space Ranger output"
        )
    return PatchCounts(filled, gene, position, count, gene_totals)


def _place_columns(
    matrix: CountMatrix, bins: BinPositions, patches: PatchOrigins, indptr: Int64Array
) -> tuple[Array, Array, Int64Array]:
    """Each column's patch (C,) int32 and position (C,) uint16, and each patch's room (P+1,)."""
    patch_of_bin = _patch_of_bin(bins, patches)
    patch_of_column = np.empty(matrix.n_columns, np.int32)
    position_of_column = np.zeros(matrix.n_columns, np.uint16)
    room = np.zeros(len(patches.row0) + 1, np.int64)
    seen = np.zeros(bins.listed.shape, bool)
    for start, row, col in matrix.read_bins():
        _check_on_grid(matrix.path, bins, row, col)
        seen[row, col] = True
        block = slice(start, start + len(row))
        patch = patch_of_column[block] = patch_of_bin[row, col]
        inside = np.flatnonzero(patch >= 0)
        p = patch[inside]
        position = (row[inside] - patches.row0[p]) * PATCH_BINS + col[inside] - patches.col0[p]
        position_of_column[start + inside] = position
        entries = np.diff(indptr[start : start + len(row) + 1])[inside]
        room[1:] += np.bincount(p, entries, len(room) - 1).astype(np.int64)  # exact below 2⁵³
    if np.count_nonzero(seen) != matrix.n_columns:
        raise SlideError(
            f"{matrix.path}: barcodes: expected every bin once; "
            f"{matrix.n_columns - np.count_nonzero(seen)} come again; "
            "the file is damaged: copy it again from the Space Ranger output"
        )
    return patch_of_column, position_of_column, np.cumsum(room)


def _patch_of_bin(bins: BinPositions, patches: PatchOrigins) -> Array:
    """(rows, cols) int32: the patch of each tissue bin, or the mark of a bin to leave out."""
    patch_of_bin = np.full(bins.tissue_mask.shape, OUTSIDE_PATCHES, np.int32)
    for patch, (row0, col0) in enumerate(zip(patches.row0, patches.col0, strict=True)):
        square = patch_of_bin[row0 : row0 + PATCH_BINS, col0 : col0 + PATCH_BINS]
        if (square != OUTSIDE_PATCHES).any():
            raise ValueError(
                f"expected patches apart; the one at ({row0}, {col0}) overlaps another"
            )
        square[:] = patch
    patch_of_bin[~bins.tissue_mask] = NOT_TISSUE
    return patch_of_bin


def _check_on_grid(path: Path, bins: BinPositions, row: Array, col: Array) -> None:
    rows, cols = bins.listed.shape
    known = (row < rows) & (col < cols)
    known[known] = bins.listed[row[known], col[known]]
    if not known.all():
        first = int(np.argmin(known))
        raise SlideError(
            f"{path}: expected bins of tissue_positions.parquet, a grid of {rows} rows and {cols} "
            f"columns; the bin at row {row[first]}, column {col[first]} is not in it; "
            "give matrix and positions of the same slide"
        )

"""Reads the count matrix in one pass and sorts its UMI counts into patches, by gene."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from virchow_st.errors import SlideError
from virchow_st.kernels.sparse import (
    LARGEST_INLINE,
    NOT_TISSUE,
    OUTSIDE_PATCHES,
    POSITION_BITS,
    close_gaps,
    place_columns,
    scatter_counts,
    sort_patches,
)
from virchow_st.slide.matrix import CountMatrix
from virchow_st.slide.patches import PatchTable
from virchow_st.slide.positions import BinPositions
from virchow_st.types import PATCH_BINS, Array, Int64Array


@dataclass(frozen=True, eq=False)
class PatchCounts:
    """The UMI counts of all patches; ``counts[p]`` gives the genes, positions and counts of one.

    Entries take 4 bytes each, packed as in the store. Within a patch they are sorted by
    (gene, position), and each pair occurs once.

    Attributes:
        indptr: (P+1,) int64 index of each patch's first entry, and the number of entries.
        gene: (nnz,) uint16, or uint32 for more than 65,536 genes; index into the slide's genes.
        entry: (nnz,) uint16: the position in the low 14 bits; in the high two, the count if it is
            1 to 3, or 0 if it is larger.
        large_indptr: (P+1,) int64 index of each patch's first count above 3, and their number.
        large: (n,) uint32 the counts above 3, in the order of their entries.
        gene_totals: (G,) int64 UMIs over all tissue bins of the slide, in patches or not.
    """

    indptr: Int64Array
    gene: Array
    entry: Array
    large_indptr: Int64Array
    large: Array
    gene_totals: Int64Array

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, patch: int) -> tuple[Array, Array, Array]:
        """One patch's gene (n,), position ``row * 128 + col`` (n,) uint16 and count (n,) uint32."""
        entries = slice(int(self.indptr[patch]), int(self.indptr[patch + 1]))
        entry = self.entry[entries]
        count = (entry >> POSITION_BITS).astype(np.uint32)
        large = slice(int(self.large_indptr[patch]), int(self.large_indptr[patch + 1]))
        count[count == 0] = self.large[large]
        return self.gene[entries], entry & np.uint16((1 << POSITION_BITS) - 1), count

    def __iter__(self) -> Iterator[tuple[Array, Array, Array]]:
        return (self[patch] for patch in range(len(self)))

    @property
    def total_umi(self) -> int:
        """UMIs over all tissue bins of the slide, in patches or not."""
        return int(self.gene_totals.sum())


def read_patch_counts(
    matrix: CountMatrix, bins: BinPositions, patches: PatchTable, tissue_only: bool
) -> PatchCounts:
    """Read the counts of tissue bins in patches.

    The matrix is read in one pass, whatever the order of its columns. Memory is 4 bytes per entry
    and about 0.3 GB.

    Args:
        matrix: the slide's matrix.
        bins: the slide's bins; every column of the matrix has to be one of them.
        patches: patches that do not overlap.
        tissue_only: whether the matrix is a filtered one, whose columns are the tissue bins.

    Raises:
        SlideError: the matrix is damaged, holds no counts, or disagrees with the bins.
        ValueError: patches overlap.
    """
    indptr = matrix.read_indptr()
    columns = _place_columns(matrix, bins, patches, indptr, tissue_only)
    room, n_genes = columns.room, len(matrix.genes)
    gene = np.empty(room[-1], np.uint16 if n_genes <= 1 << 16 else np.uint32)
    entry = np.empty(room[-1], np.uint16)
    gene_totals = np.zeros(n_genes, np.int64)
    cursor, column, larger = room[:-1].copy(), 0, [np.zeros((0, 3), np.int64)]
    for start, features, values in matrix.read_entries():
        large = np.empty((np.count_nonzero(values > LARGEST_INLINE), 3), np.int64)
        column, n_large = scatter_counts(
            start,
            column,
            features,
            values,
            indptr,
            matrix.gene_of_feature,
            columns.patch,
            columns.position,
            cursor,
            gene,
            entry,
            large,
            gene_totals,
        )
        larger.append(large[:n_large])
    # Space was reserved for features other than genes and for stored zeros, too.
    filled = close_gaps(room, cursor, gene, entry)
    gene, entry = gene[: filled[-1]], entry[: filled[-1]]
    if repeated := sort_patches(filled, gene, entry, n_genes):
        raise SlideError(
            f"{matrix.path}: expected a gene once in a bin; {repeated} entries are repeated; "
            "the file is damaged: copy it again from the Space Ranger output"
        )
    patch, key, count = np.concatenate(larger).T
    order = np.lexsort((key, patch))
    large_indptr = np.searchsorted(patch[order], np.arange(len(room)))
    return PatchCounts(
        filled, gene, entry, large_indptr, count[order].astype(np.uint32), gene_totals
    )


@dataclass(frozen=True, eq=False)
class _Columns:
    """The patch and position of the matrix's columns.

    Attributes:
        patch: (C,) int32.
        position: (C,) uint16 position within the patch.
        room: (P+1,) int64 index of each patch's first entry, were all features genes.
    """

    patch: Array
    position: Array
    room: Int64Array


def _place_columns(
    matrix: CountMatrix,
    bins: BinPositions,
    patches: PatchTable,
    indptr: Int64Array,
    tissue_only: bool,
) -> _Columns:
    patch_of_bin = _patch_of_bin(bins, patches)
    patch = np.empty(matrix.n_columns, np.int32)
    position = np.zeros(matrix.n_columns, np.uint16)
    room = np.zeros(len(patches.row0) + 1, np.int64)
    seen = np.zeros(bins.listed.shape, bool)
    for start, row, col in matrix.read_bins():
        off = place_columns(
            start,
            row,
            col,
            indptr,
            patch_of_bin,
            bins.listed,
            patches.row0,
            patches.col0,
            seen,
            patch,
            position,
            room[1:],
        )
        if off >= 0:
            rows, cols = bins.listed.shape
            raise _other_slide(
                matrix.path,
                f"expected bins of the tissue positions, a grid of {rows} rows and {cols} "
                f"columns; the bin at row {row[off]}, column {col[off]} is not in it",
            )
    if np.count_nonzero(seen) != matrix.n_columns:
        raise SlideError(
            f"{matrix.path}: barcodes: expected every bin once; "
            f"{matrix.n_columns - np.count_nonzero(seen)} are repeated; "
            "the file is damaged: copy it again from the Space Ranger output"
        )
    if tissue_only:
        _check_tissue(matrix.path, seen, bins)
    return _Columns(patch, position, np.cumsum(room))


def _patch_of_bin(bins: BinPositions, patches: PatchTable) -> Array:
    """(rows, cols) int32: the patch of each tissue bin, or a code for bins that are left out."""
    patch_of_bin = np.full(bins.tissue_mask.shape, OUTSIDE_PATCHES, np.int32)
    for patch, (row0, col0) in enumerate(zip(patches.row0, patches.col0, strict=True)):
        square = patch_of_bin[row0 : row0 + PATCH_BINS, col0 : col0 + PATCH_BINS]
        if (square != OUTSIDE_PATCHES).any():
            raise ValueError(
                f"expected patches that do not overlap; the one at ({row0}, {col0}) does"
            )
        square[:] = patch
    patch_of_bin[~bins.tissue_mask] = NOT_TISSUE
    return patch_of_bin


def _check_tissue(path: Path, seen: Array, bins: BinPositions) -> None:
    """Refuse a filtered matrix whose bins are not the tissue bins of the positions.

    Either set may contain the other, because the tissue was edited or bins without UMIs were
    dropped; two sets that each hold bins the other lacks belong to different slides.
    """
    missing = np.count_nonzero(bins.tissue_mask & ~seen)
    beyond = np.count_nonzero(seen & ~bins.tissue_mask)
    if missing and beyond:
        raise _other_slide(
            path,
            f"expected the tissue bins of the tissue positions; {missing:,} of them are "
            f"missing, and {beyond:,} bins outside tissue are present",
            "; with a tissue mask of your own, use the raw matrix",
        )


def _other_slide(path: Path, what: str, more: str = "") -> SlideError:
    return SlideError(f"{path}: {what}; give matrix and positions of the same slide{more}")

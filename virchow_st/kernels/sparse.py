"""Conversion of a streamed CSC count matrix (columns are bins) to gene-major sparse patches.

An entry has 16 bits, as in the store: the low 14 hold the position in the patch, the high two the
count if it is 1 to 3, or 0 if it is larger; larger counts are listed separately.
`sparse_reference` has the same functions in plain NumPy.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from virchow_st.types import PATCH_BINS, PATCH_POSITIONS, Array, Int64Array

OUTSIDE_PATCHES = -1
"""Patch index of a column whose bin is tissue but lies in no kept patch."""
NOT_TISSUE = -2
"""Patch index of a column whose bin is not tissue."""

POSITION_BITS = 14
"""Number of low bits of an entry that hold its position, ``row * 128 + col``, in the patch."""
LARGEST_INLINE = 3
"""Largest count that is stored in the entry itself."""
_POSITION_MASK = (1 << POSITION_BITS) - 1


@njit(cache=True, nogil=True)
def parse_bins(letters: Array, template: Array, row: Array, col: Array) -> int:
    """Parse the array row and column from fixed-width barcodes.

    Args:
        letters: (n, width) uint8 barcodes, padded with zeros at the end.
        template: (W,) uint8, W <= width; a zero marks a digit. The first half of the digits is the
            row, the second half the column.
        row: (n,) int32, output.
        col: (n,) int32, output.

    Returns:
        The index of the first barcode that does not match the template, or -1.
    """
    half = np.count_nonzero(template == 0) // 2
    for i in range(len(letters)):
        n_digits, number_of_row, number_of_col = 0, 0, 0
        for j in range(letters.shape[1]):
            letter = letters[i, j]
            if j < len(template) and template[j] == 0:
                digit = int(letter) - 48  # from ASCII
                if digit < 0 or digit > 9:
                    return i
                if n_digits < half:
                    number_of_row = number_of_row * 10 + digit
                else:
                    number_of_col = number_of_col * 10 + digit
                n_digits += 1
            elif letter != (template[j] if j < len(template) else 0):
                return i
        row[i], col[i] = number_of_row, number_of_col
    return -1


@njit(cache=True, nogil=True)
def place_columns(
    start: int,
    row: Array,
    col: Array,
    indptr: Array,
    patch_of_bin: Array,
    listed: Array,
    row0: Array,
    col0: Array,
    seen: Array,
    patch_of_column: Array,
    position_of_column: Array,
    n_entries: Array,
) -> int:
    """Find the patch of each column of a block, and count the entries of each patch.

    Args:
        start: Index of the block's first column in the matrix.
        row: (n,) int32 ``array_row`` of the block's columns.
        col: (n,) int32 ``array_col`` of the block's columns.
        indptr: (C+1,) int64 index pointer of the whole matrix.
        patch_of_bin: (rows, cols) int32 patch index of every bin, `OUTSIDE_PATCHES` or
            `NOT_TISSUE`.
        listed: (rows, cols) bool, bins that the tissue positions list.
        row0: (P,) int32 first row of each patch.
        col0: (P,) int32 first column of each patch.
        seen: (rows, cols) bool, output; set to True for the bins of the block.
        patch_of_column: (C,) int32, output.
        position_of_column: (C,) uint16, output, for columns in patches.
        n_entries: (P,) int64 number of entries per patch, incremented.

    Returns:
        The index, within the block, of the first column whose bin is not listed, or -1.
    """
    rows, cols = listed.shape
    for i in range(len(row)):
        r, c = row[i], col[i]
        if r >= rows or c >= cols or not listed[r, c]:
            return i
        seen[r, c] = True
        patch = patch_of_bin[r, c]
        patch_of_column[start + i] = patch
        if patch >= 0:
            position_of_column[start + i] = (r - row0[patch]) * PATCH_BINS + c - col0[patch]
            n_entries[patch] += indptr[start + i + 1] - indptr[start + i]
    return -1


@njit(cache=True, nogil=True)
def scatter_counts(
    start: int,
    column: int,
    indices: Array,
    values: Array,
    indptr: Array,
    gene_of_feature: Array,
    patch_of_column: Array,
    position_of_column: Array,
    cursor: Array,
    gene: Array,
    entry: Array,
    large: Array,
    gene_totals: Array,
) -> tuple[int, int]:
    """Write a block of a CSC matrix's non-zeros to the ranges reserved for their patches.

    Args:
        start: Index of the block's first entry among all entries of the matrix.
        column: Column of that entry (or an empty column before it).
        indices: (n,) int64 feature indices of the block's entries.
        values: (n,) uint32 counts of the block's entries; zeros are skipped.
        indptr: (C+1,) int64 index pointer of the whole matrix.
        gene_of_feature: (F,) int32 gene index; -1 for a feature that is not a gene.
        patch_of_column: (C,) int32 patch index; `OUTSIDE_PATCHES` or `NOT_TISSUE` for columns to
            leave out.
        position_of_column: (C,) uint16 position in the patch.
        cursor: (P,) int64 index of each patch's next free entry, advanced.
        gene: (nnz,) gene of each entry, output.
        entry: (nnz,) uint16 entries, output.
        large: (n_large, 3) int64 with one row per count of the block above `LARGEST_INLINE`,
            output: patch, ``gene << 14 | position`` and count of those that lie in patches.
        gene_totals: (G,) int64 UMIs over all tissue columns, incremented.

    Returns:
        The column in which the block ends, which is the next block's ``column``; and the number of
        rows of ``large`` that were written.
    """
    n_large = 0
    for i in range(len(indices)):
        while indptr[column + 1] <= start + i:
            column += 1
        g = gene_of_feature[indices[i]]
        patch = patch_of_column[column]
        value = values[i]
        if g < 0 or value == 0 or patch == NOT_TISSUE:
            continue
        gene_totals[g] += value
        if patch >= 0:
            at = cursor[patch]
            position = position_of_column[column]
            gene[at] = g
            if value <= LARGEST_INLINE:
                entry[at] = position | value << POSITION_BITS
            else:
                entry[at] = position
                large[n_large, 0] = patch
                large[n_large, 1] = np.int64(g) << POSITION_BITS | np.int64(position)
                large[n_large, 2] = value
                n_large += 1
            cursor[patch] = at + 1
    return column, n_large


@njit(cache=True, nogil=True)
def close_gaps(reserved: Array, filled_to: Array, gene: Array, entry: Array) -> Int64Array:
    """Compact the entries in place where a patch has filled less than its reserved range.

    Args:
        reserved: (P+1,) int64 start of each patch's reserved range, and the end of the last.
        filled_to: (P,) int64 end of each patch's entries.
        gene: (nnz,) gene of each entry; moved towards the front.
        entry: (nnz,) entries; moved in the same way.

    Returns:
        (P+1,) int64 new start of each patch's entries, and the end of the last.
    """
    indptr = np.zeros(len(reserved), np.int64)
    at = 0
    for p in range(len(filled_to)):
        if at == reserved[p]:  # no gap so far
            at = filled_to[p]
        else:
            for i in range(reserved[p], filled_to[p]):
                gene[at] = gene[i]
                entry[at] = entry[i]
                at += 1
        indptr[p + 1] = at
    return indptr


@njit(cache=True, nogil=True)
def sort_patches(indptr: Array, gene: Array, entry: Array, n_genes: int) -> int:
    """Sort each patch's entries by (gene, position), in place.

    Two stable counting sorts, by position and then by gene, take time linear in the number of
    entries, and the entries of one patch fit into the cache.

    Args:
        indptr: (P+1,) int64 start of each patch's entries, and the end of the last.
        gene: (nnz,) gene of each entry, below ``n_genes``; permuted within each patch.
        entry: (nnz,) uint16 entries; permuted in the same way.
        n_genes: Number of genes.

    Returns:
        The number of entries that repeat the (gene, position) of another entry of their patch.
    """
    longest = 0
    for p in range(len(indptr) - 1):
        longest = max(longest, indptr[p + 1] - indptr[p])
    gene_by_position = np.empty(longest, gene.dtype)
    entry_by_position = np.empty(longest, entry.dtype)
    position_start = np.empty(PATCH_POSITIONS + 1, np.int64)
    gene_start = np.empty(n_genes + 1, np.int64)
    repeated = 0
    for p in range(len(indptr) - 1):
        first, last = indptr[p], indptr[p + 1]
        position_start[:] = 0
        gene_start[:] = 0
        for i in range(first, last):
            position_start[(entry[i] & _POSITION_MASK) + 1] += 1
            gene_start[gene[i] + 1] += 1
        for k in range(PATCH_POSITIONS):
            position_start[k + 1] += position_start[k]
        for k in range(n_genes):
            gene_start[k + 1] += gene_start[k]

        for i in range(first, last):
            position = entry[i] & _POSITION_MASK
            at = position_start[position]
            position_start[position] = at + 1
            gene_by_position[at] = gene[i]
            entry_by_position[at] = entry[i]
        for i in range(last - first):
            g = gene_by_position[i]
            at = first + gene_start[g]
            gene_start[g] += 1
            gene[at] = g
            entry[at] = entry_by_position[i]
        for i in range(first + 1, last):
            if gene[i] == gene[i - 1] and (entry[i] ^ entry[i - 1]) & _POSITION_MASK == 0:
                repeated += 1
    return repeated

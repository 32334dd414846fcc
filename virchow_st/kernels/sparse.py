"""Sparse counts: columns of a streamed CSC matrix to gene-major patches, in numba.

`sparse_reference` holds the same functions in plain NumPy.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from virchow_st.types import PATCH_POSITIONS, Array, Int64Array

OUTSIDE_PATCHES = -1
"""Mark of a column whose bin is tissue but lies in no kept patch."""
NOT_TISSUE = -2
"""Mark of a column whose bin is not tissue."""


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
    position: Array,
    count: Array,
    gene_totals: Array,
) -> int:
    """Put a block of a CSC matrix's non-zeros where their patches have room.

    Args:
        start: index of the block's first entry among all entries of the matrix.
        column: the column that entry lies in (or an empty one before it).
        indices: (n,) int64 features of the block's entries.
        values: (n,) uint32 their counts; zeros are passed over.
        indptr: (C+1,) int64 of the whole matrix.
        gene_of_feature: (F,) int32; -1 for a feature that is no gene.
        patch_of_column: (C,) int32; `OUTSIDE_PATCHES` or `NOT_TISSUE` for columns to leave out.
        position_of_column: (C,) uint16 positions in the patch.
        cursor: (P,) int64 where each patch's next entry goes; moved on.
        gene: (nnz,) the patches' genes; written.
        position: (nnz,) their positions; written.
        count: (nnz,) their counts; written.
        gene_totals: (G,) int64 UMIs over all tissue columns; added to.

    Returns:
        The column in which the block ends: the next block's ``column``.
    """
    for i in range(len(indices)):
        while indptr[column + 1] <= start + i:
            column += 1
        g = gene_of_feature[indices[i]]
        patch = patch_of_column[column]
        if g < 0 or values[i] == 0 or patch == NOT_TISSUE:
            continue
        gene_totals[g] += values[i]
        if patch >= 0:
            at = cursor[patch]
            gene[at] = g
            position[at] = position_of_column[column]
            count[at] = values[i]
            cursor[patch] = at + 1
    return column


@njit(cache=True, nogil=True)
def close_gaps(
    room: Array, filled_to: Array, gene: Array, position: Array, count: Array
) -> Int64Array:
    """Move the patches' entries together, in place, where a patch has filled less than its room.

    Args:
        room: (P+1,) int64 where each patch's room begins and the last ends.
        filled_to: (P,) int64 where each patch's entries end.
        gene: (nnz,) the entries' genes; moved towards the front.
        position: (nnz,) their positions; moved alike.
        count: (nnz,) their counts; moved alike.

    Returns:
        (P+1,) int64 where each patch's entries now begin, and the last end.
    """
    indptr = np.zeros(len(room), np.int64)
    at = 0
    for p in range(len(filled_to)):
        for i in range(room[p], filled_to[p]):
            gene[at] = gene[i]
            position[at] = position[i]
            count[at] = count[i]
            at += 1
        indptr[p + 1] = at
    return indptr


@njit(cache=True, nogil=True)
def sort_patches(indptr: Array, gene: Array, position: Array, count: Array, n_genes: int) -> int:
    """Sort each patch's entries by (gene, position), in place.

    Two stable counting sorts, by position and then by gene: linear in the entries, and one
    patch's entries fit the cache.

    Args:
        indptr: (P+1,) int64.
        gene: (nnz,) the entries' genes; permuted within each patch.
        position: (nnz,) their positions; permuted alike.
        count: (nnz,) their counts; permuted alike.
        n_genes: number of genes G; every ``gene`` is below it.

    Returns:
        How many entries repeat the (gene, position) of another in their patch.
    """
    longest = 0
    for p in range(len(indptr) - 1):
        longest = max(longest, indptr[p + 1] - indptr[p])
    gene_by_position = np.empty(longest, gene.dtype)
    position_by_position = np.empty(longest, position.dtype)
    count_by_position = np.empty(longest, count.dtype)
    position_start = np.empty(PATCH_POSITIONS + 1, np.int64)
    gene_start = np.empty(n_genes + 1, np.int64)
    repeated = 0
    for p in range(len(indptr) - 1):
        first, last = indptr[p], indptr[p + 1]
        position_start[:] = 0
        gene_start[:] = 0
        for i in range(first, last):
            position_start[position[i] + 1] += 1
            gene_start[gene[i] + 1] += 1
        for k in range(PATCH_POSITIONS):
            position_start[k + 1] += position_start[k]
        for k in range(n_genes):
            gene_start[k + 1] += gene_start[k]

        for i in range(first, last):
            at = position_start[position[i]]
            position_start[position[i]] = at + 1
            gene_by_position[at] = gene[i]
            position_by_position[at] = position[i]
            count_by_position[at] = count[i]
        for i in range(last - first):
            g = gene_by_position[i]
            at = first + gene_start[g]
            gene_start[g] += 1
            gene[at] = g
            position[at] = position_by_position[i]
            count[at] = count_by_position[i]
        for i in range(first + 1, last):
            if gene[i] == gene[i - 1] and position[i] == position[i - 1]:
                repeated += 1
    return repeated

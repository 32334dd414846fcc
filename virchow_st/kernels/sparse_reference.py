"""The functions of `kernels.sparse` in plain NumPy: the truth its tests compare with."""

from __future__ import annotations

import numpy as np

from virchow_st.types import Array, Int64Array

NOT_TISSUE = -2


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
    """See `virchow_st.kernels.sparse.scatter_counts`; ``column`` is found anew here."""
    columns = np.searchsorted(indptr, start + np.arange(len(indices)), side="right") - 1
    genes, patches = gene_of_feature[indices], patch_of_column[columns]
    wanted = (genes >= 0) & (values > 0) & (patches != NOT_TISSUE)
    np.add.at(gene_totals, genes[wanted], values[wanted].astype(np.int64))
    for p in np.unique(patches[wanted & (patches >= 0)]):
        of_patch = wanted & (patches == p)
        at = cursor[p] + np.arange(np.count_nonzero(of_patch))
        gene[at] = genes[of_patch]
        position[at] = position_of_column[columns[of_patch]]
        count[at] = values[of_patch]
        cursor[p] += len(at)
    return int(columns[-1]) if len(columns) else column


def close_gaps(
    room: Array, filled_to: Array, gene: Array, position: Array, count: Array
) -> Int64Array:
    """See `virchow_st.kernels.sparse.close_gaps`."""
    used = [np.arange(first, last) for first, last in zip(room[:-1], filled_to, strict=True)]
    keep = np.concatenate([np.zeros(0, np.int64), *used])
    for values in (gene, position, count):
        values[: len(keep)] = values[keep]
    lengths = np.array([0, *(len(u) for u in used)], np.int64)
    return np.cumsum(lengths)


def sort_patches(indptr: Array, gene: Array, position: Array, count: Array, n_genes: int) -> int:
    """See `virchow_st.kernels.sparse.sort_patches`."""
    patch = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    order = np.lexsort((position, gene, patch))
    for values in (gene, position, count):
        values[:] = values[order]
    key = np.stack([patch, gene, position])
    return int(np.count_nonzero((key[:, 1:] == key[:, :-1]).all(axis=0)))

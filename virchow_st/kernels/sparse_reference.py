"""Plain NumPy reference for the functions of `kernels.sparse`, used by the tests."""

from __future__ import annotations

import re

import numpy as np

from virchow_st.types import Array, Int64Array

NOT_TISSUE = -2


def parse_bins(letters: Array, template: Array, row: Array, col: Array) -> int:
    """See `virchow_st.kernels.sparse.parse_bins`."""
    half = np.count_nonzero(template == 0) // 2
    fixed = re.split(rb"\0+", template.tobytes())
    pattern = re.compile(rb"(\d{%d})".join(map(re.escape, fixed)) % (half, half))
    for i, barcode in enumerate(letters):
        fits = pattern.fullmatch(barcode.tobytes().rstrip(b"\0"))
        if fits is None:
            return i
        row[i], col[i] = map(int, fits.groups())
    return -1


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
    """See `virchow_st.kernels.sparse.place_columns`; a refused block leaves the outputs as is."""
    known = (row < listed.shape[0]) & (col < listed.shape[1])
    known[known] = listed[row[known], col[known]]
    if not known.all():
        return int(np.argmin(known))
    seen[row, col] = True
    columns = start + np.arange(len(row))
    patch_of_column[columns] = patch_of_bin[row, col]
    inside = patch_of_column[columns] >= 0
    patch, columns = patch_of_column[columns][inside], columns[inside]
    position_of_column[columns] = (row[inside] - row0[patch]) * 128 + col[inside] - col0[patch]
    np.add.at(n_entries, patch, indptr[columns + 1] - indptr[columns])
    return -1


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
    """See `virchow_st.kernels.sparse.scatter_counts`; ``column`` is recomputed here."""
    columns = np.searchsorted(indptr, start + np.arange(len(indices)), side="right") - 1
    genes, patches = gene_of_feature[indices], patch_of_column[columns]
    positions = position_of_column[columns]
    wanted = (genes >= 0) & (values > 0) & (patches != NOT_TISSUE)
    np.add.at(gene_totals, genes[wanted], values[wanted].astype(np.int64))
    for p in np.unique(patches[wanted & (patches >= 0)]):
        of_patch = wanted & (patches == p)
        at = cursor[p] + np.arange(np.count_nonzero(of_patch))
        gene[at] = genes[of_patch]
        inline = np.where(values[of_patch] <= 3, values[of_patch], 0)
        entry[at] = positions[of_patch] + inline * (1 << 14)
        cursor[p] += len(at)
    is_large = np.flatnonzero(wanted & (patches >= 0) & (values > 3))
    keys = genes[is_large].astype(np.int64) * (1 << 14) + positions[is_large]
    large[: len(is_large)] = np.stack([patches[is_large], keys, values[is_large]], axis=1)
    return int(columns[-1]) if len(columns) else column, len(is_large)


def close_gaps(reserved: Array, filled_to: Array, gene: Array, entry: Array) -> Int64Array:
    """See `virchow_st.kernels.sparse.close_gaps`."""
    used = [np.arange(first, last) for first, last in zip(reserved[:-1], filled_to, strict=True)]
    keep = np.concatenate([np.zeros(0, np.int64), *used])
    for values in (gene, entry):
        values[: len(keep)] = values[keep]
    lengths = np.array([0, *(len(u) for u in used)], np.int64)
    return np.cumsum(lengths)


def sort_patches(indptr: Array, gene: Array, entry: Array, n_genes: int) -> int:
    """See `virchow_st.kernels.sparse.sort_patches`."""
    patch = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    order = np.lexsort((entry % (1 << 14), gene, patch))
    for values in (gene, entry):
        values[:] = values[order]
    key = np.stack([patch, gene, entry % (1 << 14)])
    return int(np.count_nonzero((key[:, 1:] == key[:, :-1]).all(axis=0)))

"""Plain NumPy reference for the functions of `kernels.panel`, used by tests and the benchmark."""

from __future__ import annotations

import numpy as np

from virchow_st.types import PATCH_BINS, PATCH_POSITIONS, Array, Float32Array, Int64Array


def find_fault(
    genes: Array, sizes: Array, entries: Array, padding: Array, escapes: Array, n_genes: int
) -> int:
    """See `virchow_st.kernels.panel.find_fault`; the fault constants are numbered in this order."""
    positions, inline = np.divmod(entries.astype(np.int64), PATCH_POSITIONS)[::-1]
    gene_of_entry = np.repeat(np.arange(len(sizes)), sizes)
    at, large = escapes.reshape(-1, 2).T
    if (np.diff(genes.astype(np.int64)) <= 0).any() or (genes >= n_genes).any():
        return 1
    if sizes.sum(dtype=np.int64) != len(entries) or (sizes == 0).any():
        return 2
    if ((np.diff(positions) <= 0) & (np.diff(gene_of_entry) == 0)).any():
        return 3
    if not np.array_equal(at, np.flatnonzero(inline == 0)):
        return 4
    if (large < 4).any():
        return 5
    return 6 if padding.any() else 0


def find_panel(genes: Array, sizes: Array, panel: Int64Array) -> Int64Array:
    """See `virchow_st.kernels.panel.find_panel`."""
    ends = np.cumsum(sizes, dtype=np.int64)
    spans = {int(g): (e - s, e) for g, s, e in zip(genes, sizes, ends, strict=True)}
    return np.array([spans.get(int(g), (0, 0)) for g in panel], np.int64).reshape(-1, 2)


def fill_dense(entries: Array, escapes: Array, spans: Int64Array, out: Float32Array) -> None:
    """See `virchow_st.kernels.panel.fill_dense`."""
    counts = _counts(entries, escapes)
    out[:] = 0
    for row, (start, stop) in zip(out, spans, strict=True):
        row[entries[start:stop] % PATCH_POSITIONS] = counts[start:stop]


def gather_sparse(entries: Array, escapes: Array, spans: Int64Array) -> tuple[Array, Array, Array]:
    """See `virchow_st.kernels.panel.gather_sparse`."""
    taken = [np.arange(start, stop) for start, stop in spans]
    i = np.concatenate([np.zeros(0, np.int64), *taken])
    gene = np.repeat(np.arange(len(spans)), [len(t) for t in taken])
    position = entries[i] % PATCH_POSITIONS
    return gene.astype(np.uint16), position.astype(np.uint16), _counts(entries, escapes)[i]


def pool_sparse(
    gene: Array, position: Array, count: Array, factor: int
) -> tuple[Array, Array, Array, bool]:
    """See `virchow_st.kernels.panel.pool_sparse`."""
    side = PATCH_BINS // factor
    row, col = np.divmod(position.astype(np.int64), PATCH_BINS)
    cell = (gene.astype(np.int64) * side + row // factor) * side + col // factor
    cells, which = np.unique(cell, return_inverse=True)
    sums = np.zeros(len(cells), np.int64)
    np.add.at(sums, which, count.astype(np.int64))
    pooled_gene, pooled_position = np.divmod(cells, side * side)
    return (
        pooled_gene.astype(np.uint16),
        pooled_position.astype(np.uint16),
        sums.astype(np.uint32),
        bool((sums < 2**32).all()),
    )


def _counts(entries: Array, escapes: Array) -> Array:
    """(N,) uint32 UMIs of every entry."""
    counts = (entries // PATCH_POSITIONS).astype(np.uint32)
    at, large = escapes.reshape(-1, 2).T
    counts[at.astype(np.int64)] = large
    return counts

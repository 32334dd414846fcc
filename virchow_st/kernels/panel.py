"""Decoding of counts records (docs/store-format.md, kind 4) for the genes of a panel.

A record may be damaged, so `find_fault` checks every number of it first, with the same rules as
`virchow_st.store.format.unpack_counts`. The other functions require a record without a fault. All
of them release the GIL, so that threads can decode different patches in parallel.

A record is passed as four arrays that view its bytes without a copy: ``genes`` (P,) uint16, or
uint32 in a store of more than 65,535 genes, ``sizes`` (P,) uint16, ``entries`` (N,) uint16 and
``escapes`` (2E,) uint32, as the format document defines them.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from virchow_st.types import PATCH_BINS, PATCH_POSITIONS, Array, Float32Array, Int64Array

SOUND = 0
GENES_FAULT = 1
SIZES_FAULT = 2
POSITIONS_FAULT = 3
ESCAPES_FAULT = 4
SMALL_ESCAPE_FAULT = 5
PADDING_FAULT = 6

_POSITION_BITS = 14
_POSITION_MASK = np.uint16(PATCH_POSITIONS - 1)
_FIRST_INLINE = np.uint16(1 << _POSITION_BITS)  # smaller entries have their count in `escapes`
_ROW_SHIFT = 7  # a position is row * 128 + col
_LARGEST_INLINE_COUNT = 3
_LARGEST_COUNT = (1 << 32) - 1


@njit(cache=True, nogil=True)
def find_fault(
    genes: Array, sizes: Array, entries: Array, padding: Array, escapes: Array, n_genes: int
) -> int:
    """Return the first fault of a record, or `SOUND`.

    Faults are looked for in the same order as in `virchow_st.store.format.unpack_counts`.

    Args:
        genes: (P,) uint16 or uint32 gene indices, which must increase strictly.
        sizes: (P,) uint16 number of entries per gene, at least 1.
        entries: (N,) uint16 entries, with strictly increasing positions within a gene.
        padding: (0,) or (1,) uint16, which must be 0.
        escapes: (2E,) uint32 pairs of entry index and count, for counts above 3.
        n_genes: Number of genes in the manifest.

    Returns:
        `SOUND`, or one of the ``*_FAULT`` constants of this module.
    """
    P, N, E = genes.size, entries.size, escapes.size // 2
    for j in range(P):
        if genes[j] >= n_genes or (j > 0 and genes[j] <= genes[j - 1]):
            return GENES_FAULT
    n_sized = n_empty = 0
    for j in range(P):
        n_sized += sizes[j]
        n_empty += sizes[j] == 0
    if n_sized != N or n_empty:
        return SIZES_FAULT

    n_not_rising = n_escaped = 0  # counted over all neighbours first: a branch-free loop vectorises
    for i in range(1, N):
        n_not_rising += (entries[i] & _POSITION_MASK) <= (entries[i - 1] & _POSITION_MASK)
    for i in range(N):
        n_escaped += entries[i] < _FIRST_INLINE
    at = 0
    for j in range(P - 1):  # positions may fall from one gene's last entry to the next gene's first
        at += sizes[j]
        n_not_rising -= (entries[at] & _POSITION_MASK) <= (entries[at - 1] & _POSITION_MASK)
    if n_not_rising:
        return POSITIONS_FAULT

    if n_escaped != E:
        return ESCAPES_FAULT
    for k in range(E):
        i = escapes[2 * k]
        rises = k == 0 or i > escapes[2 * k - 2]
        if not rises or i >= N or entries[i] >= _FIRST_INLINE:
            return ESCAPES_FAULT
    for k in range(E):
        if escapes[2 * k + 1] <= _LARGEST_INLINE_COUNT:
            return SMALL_ESCAPE_FAULT
    for k in range(padding.size):
        if padding[k] != 0:
            return PADDING_FAULT
    return SOUND


@njit(cache=True, nogil=True)
def find_panel(genes: Array, sizes: Array, panel: Int64Array) -> Int64Array:
    """Find the range of entries of each gene of a panel.

    Args:
        genes: (P,) uint16 or uint32 gene indices of the record, strictly increasing.
        sizes: (P,) uint16 number of entries per gene.
        panel: (G,) int64 gene indices, in any order, repeats allowed.

    Returns:
        (G, 2) int64 half-open ranges [first, stop) of entries; (0, 0) for a gene without counts.
    """
    starts = np.zeros(genes.size + 1, np.int64)
    for j in range(genes.size):
        starts[j + 1] = starts[j] + sizes[j]
    spans = np.zeros((panel.size, 2), np.int64)
    for g in range(panel.size):
        low, high = 0, genes.size
        while low < high:
            middle = (low + high) // 2
            if genes[middle] < panel[g]:
                low = middle + 1
            else:
                high = middle
        if low < genes.size and genes[low] == panel[g]:
            spans[g, 0] = starts[low]
            spans[g, 1] = starts[low + 1]
    return spans


@njit(cache=True, nogil=True)
def fill_dense(entries: Array, escapes: Array, spans: Int64Array, out: Float32Array) -> None:
    """Write the counts of a panel as dense maps.

    Args:
        entries: (N,) uint16.
        escapes: (2E,) uint32.
        spans: (G, 2) int64 ranges of entries from `find_panel`.
        out: (G, 16384) float32 UMIs, output; every element is overwritten. Counts above 2²⁴ are
            rounded to the nearest float32.
    """
    for g in range(spans.shape[0]):
        row = out[g]
        row[:] = np.float32(0)
        escape = _first_escape(escapes, spans[g, 0])
        for i in range(spans[g, 0], spans[g, 1]):
            inline = entries[i] >> _POSITION_BITS
            position = entries[i] & _POSITION_MASK
            if inline:
                row[position] = np.float32(inline)
            else:
                row[position] = np.float32(escapes[2 * escape + 1])
                escape += 1


@njit(cache=True, nogil=True)
def gather_sparse(entries: Array, escapes: Array, spans: Int64Array) -> tuple[Array, Array, Array]:
    """Return the non-zero counts of a panel, sorted by (gene, position).

    Args:
        entries: (N,) uint16.
        escapes: (2E,) uint32.
        spans: (G, 2) int64 ranges of entries from `find_panel`; G ≤ 65,536.

    Returns:
        (n,) uint16 index of the gene in the panel, (n,) uint16 position in the patch,
        ``row * 128 + col``, and (n,) uint32 UMIs.
    """
    n = 0
    for g in range(spans.shape[0]):
        n += spans[g, 1] - spans[g, 0]
    gene, position = np.empty(n, np.uint16), np.empty(n, np.uint16)
    count = np.empty(n, np.uint32)
    at = 0
    for g in range(spans.shape[0]):
        escape = _first_escape(escapes, spans[g, 0])
        for i in range(spans[g, 0], spans[g, 1]):
            inline = entries[i] >> _POSITION_BITS
            gene[at] = g
            position[at] = entries[i] & _POSITION_MASK
            if inline:
                count[at] = inline
            else:
                count[at] = escapes[2 * escape + 1]
                escape += 1
            at += 1
    return gene, position, count


@njit(cache=True, nogil=True)
def pool_sparse(
    gene: Array, position: Array, count: Array, factor: int
) -> tuple[Array, Array, Array, bool]:
    """Sum sparse 2 µm counts over blocks of ``factor`` × ``factor`` bins.

    The entries of a gene are sorted by row, so one row of coarse bins is summed at a time.

    Args:
        gene: (n,) uint16, sorted.
        position: (n,) uint16 ``row * 128 + col``, sorted within a gene.
        count: (n,) uint32 UMIs.
        factor: Side of a coarse bin in 2 µm bins, a power of two up to 128.

    Returns:
        (m,) uint16 genes, (m,) uint16 positions ``row * (128 / factor) + col`` in the coarse grid
        and (m,) uint32 sums, sorted by (gene, position); and whether every sum is below 2³². If
        that is False, the sums have overflowed and must not be used.
    """
    shift = 0  # shifts are used because division by a run-time value would dominate the cost
    while 1 << shift < factor:
        shift += 1
    n, side = gene.size, PATCH_BINS >> shift
    out_gene, out_position = np.empty(n, np.uint16), np.empty(n, np.uint16)
    out_count = np.empty(n, np.uint32)
    sums = np.zeros(side, np.int64)
    at, i, fits = 0, 0, True
    while i < n:
        g, row = gene[i], position[i] >> (_ROW_SHIFT + shift)
        while i < n and gene[i] == g and position[i] >> (_ROW_SHIFT + shift) == row:
            sums[(position[i] & (PATCH_BINS - 1)) >> shift] += count[i]
            i += 1
        for col in range(side):
            if sums[col]:
                fits &= sums[col] <= _LARGEST_COUNT
                out_gene[at] = g
                out_position[at] = row * side + col
                out_count[at] = sums[col]
                sums[col] = 0
                at += 1
    return out_gene[:at].copy(), out_position[:at].copy(), out_count[:at].copy(), fits


@njit(cache=True, nogil=True)
def _first_escape(escapes: Array, entry: int) -> int:
    """Index of the first escape that belongs to ``entry`` or a later entry."""
    low, high = 0, escapes.size // 2
    while low < high:
        middle = (low + high) // 2
        if escapes[2 * middle] < entry:
            low = middle + 1
        else:
            high = middle
    return low

"""Reads the counts of a panel directly from the bytes of a counts record, dense or sparse.

The work is done by numba kernels. Every number of the record is checked before it is used, also
those of genes outside the panel, and malformed records are refused with the same messages as by
`virchow_st.store.format.unpack_counts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from virchow_st.errors import StoreError
from virchow_st.kernels import panel as kernels
from virchow_st.store.format import MAX_PANEL, CountsParts, split_counts
from virchow_st.types import (
    BIN_UM,
    PATCH_BINS,
    PATCH_POSITIONS,
    SCALES_UM,
    Array,
    Float32Array,
    Int64Array,
)

_FAULTS = {
    kernels.GENES_FAULT: "gene indices out of order or beyond the gene list",
    kernels.SIZES_FAULT: "the genes' sizes do not add up to the number of entries",
    kernels.POSITIONS_FAULT: "the positions of a gene are out of order",
    kernels.ESCAPES_FAULT: "escapes do not match the entries they stand for",
    kernels.SMALL_ESCAPE_FAULT: "an escape holds a count below 4",
    kernels.PADDING_FAULT: "the padding is not zero",
}


@dataclass(frozen=True)
class PanelCounts:
    """The non-zero counts of a panel in one patch, sorted by (gene, position).

    Attributes:
        gene: (n,) uint16 index of the gene in the panel.
        position: (n,) uint16, ``row * side + col`` in the patch's grid of ``side`` × ``side`` bins.
        count: (n,) uint32 UMIs.
        bin_um: side of a bin, µm: 2, or 4, 8 or 16 if counts were summed.
        n_genes: number of genes in the panel, G.
    """

    gene: Array
    position: Array
    count: Array
    bin_um: int
    n_genes: int

    @property
    def side(self) -> int:
        """Number of bins along a side of the patch: 128, 64, 32 or 16."""
        return PATCH_BINS * BIN_UM // self.bin_um

    def pooled(self, bin_um: int) -> PanelCounts:
        """Sum the counts to larger bins.

        Args:
            bin_um: side of the new bins: 4, 8 or 16 µm; 2 returns the counts unchanged.

        Raises:
            ValueError: another size, or these counts have been pooled already.
            StoreError: a sum exceeds 32 bits.
        """
        if bin_um not in SCALES_UM:
            raise ValueError(f"bin_um: expected one of {SCALES_UM}, got {bin_um}")
        if self.bin_um != BIN_UM:
            raise ValueError(f"pooled: expected counts at {BIN_UM} µm, got {self.bin_um} µm")
        if bin_um == BIN_UM:
            return self
        gene, position, count, fits = kernels.pool_sparse(
            self.gene, self.position, self.count, bin_um // BIN_UM
        )
        if not fits:
            raise StoreError(f"counts record: a sum over {bin_um} µm is beyond 32 bits")
        return PanelCounts(gene, position, count, bin_um, self.n_genes)


def read_dense(
    payload: memoryview,
    n_genes: int,
    panel: Sequence[int] | Int64Array,
    out: Float32Array | None = None,
) -> Float32Array:
    """Counts of a panel as dense maps.

    Args:
        payload: payload of a counts record whose checksum has been compared.
        n_genes: number of genes in the manifest.
        panel: (G,) gene indices in any order; an index may occur several times.
        out: (G, 128, 128) float32 C-contiguous array to overwrite; allocated if None. It is
            unchanged if an error is raised.

    Returns:
        (G, 128, 128) float32 UMIs, ``out`` if given. Counts above 2²⁴ are rounded to float32.

    Raises:
        StoreError: the record is malformed.
        IndexError: a gene index is outside the manifest's list.
        ValueError: the panel or the buffer has another shape or type.
    """
    genes = check_panel(panel, n_genes)
    shape = (len(genes), PATCH_BINS, PATCH_BINS)
    if out is None:
        out = np.empty(shape, np.float32)
    elif out.shape != shape or out.dtype != np.float32 or not _is_plain(out):
        raise ValueError(
            f"out: expected a writable C-contiguous float32 array of shape {shape}, "
            f"got {out.dtype} of {out.shape}"
        )
    parts = _checked_parts(payload, n_genes)
    spans = kernels.find_panel(parts.genes, parts.sizes, genes)
    flat = out.reshape(-1, PATCH_POSITIONS)
    kernels.fill_dense(parts.entries, parts.escapes, spans, flat)
    return out


def read_sparse(
    payload: memoryview, n_genes: int, panel: Sequence[int] | Int64Array
) -> PanelCounts:
    """Non-zero counts of a panel at 2 µm; arguments and errors are those of `read_dense`."""
    genes = check_panel(panel, n_genes)
    parts = _checked_parts(payload, n_genes)
    spans = kernels.find_panel(parts.genes, parts.sizes, genes)
    gene, position, count = kernels.gather_sparse(parts.entries, parts.escapes, spans)
    return PanelCounts(gene, position, count, BIN_UM, len(genes))


def check_panel(panel: Sequence[int] | Int64Array, n_genes: int) -> Int64Array:
    """Check a panel and return it as a (G,) int64 array; the errors are those of `read_dense`."""
    given = np.asarray(panel)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ValueError(
            f"panel: expected a list of gene indices, got {given.dtype} of shape {given.shape}"
        )
    if given.size > MAX_PANEL:
        raise ValueError(f"panel: expected at most {MAX_PANEL} genes, got {given.size}")
    if ((given < 0) | (given >= n_genes)).any():
        wrong = given[(given < 0) | (given >= n_genes)][0]
        raise IndexError(f"panel: expected gene indices 0 to {n_genes - 1}, got {wrong}")
    return np.ascontiguousarray(given, np.int64)


def _checked_parts(payload: memoryview, n_genes: int) -> CountsParts:
    """Split a record into its arrays and check every number of them."""
    parts = CountsParts(*map(_plain, split_counts(payload, n_genes)))
    fault = kernels.find_fault(*parts, n_genes)
    if fault != kernels.SOUND:
        raise StoreError(f"counts record: {_FAULTS[fault]}")
    return parts


def _plain(numbers: Array) -> Array:
    """The numbers as an aligned, read-only array, copied only if they are not aligned.

    It is always read-only, so that the kernels are compiled for a single array type.
    """
    aligned = np.require(numbers, requirements="A")
    aligned.flags.writeable = False
    return aligned


def _is_plain(x: Array) -> bool:
    return x.flags.c_contiguous and x.flags.aligned and x.flags.writeable

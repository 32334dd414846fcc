"""An independent reader of a Visium HD slide, with which tests compare the package's reader."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
from scipy import sparse

from virchow_st.types import PATCH_BINS

SQUARE = "binned_outputs/square_002um"


class Reference:
    """A slide's counts and tissue, read with h5py, scipy and pyarrow only.

    Attributes:
        tissue: (rows, cols) bool.
        counts: (G, rows · cols) csr of UMIs in tissue bins.
        ids: (G,) gene ids.
    """

    def __init__(self, outs: Path, matrix: str) -> None:
        square = outs / SQUARE
        table = pq.read_table(square / "spatial" / "tissue_positions.parquet").to_pydict()
        place = {
            barcode: (row, col, inside)
            for barcode, row, col, inside in zip(
                table["barcode"], table["array_row"], table["array_col"], table["in_tissue"],
                strict=True,
            )
        }  # fmt: skip
        shape = max(table["array_row"]) + 1, max(table["array_col"]) + 1
        self.tissue = np.zeros(shape, bool)
        for row, col, inside in place.values():
            self.tissue[row, col] = inside == 1
        with h5py.File(square / f"{matrix}_feature_bc_matrix.h5") as f:
            m = f["matrix"]
            parts = (m["data"][:], m["indices"][:].astype(np.int64), m["indptr"][:])
            csc = sparse.csc_matrix(parts, shape=tuple(int(n) for n in m["shape"][:]))
            columns = [place[b.decode()] for b in m["barcodes"][:]]
            self.ids = [i.decode() for i in m["features/id"][:]]
            is_gene = np.array(
                [k.decode() == "Gene Expression" for k in m["features/feature_type"][:]]
            )
        row, col, inside = np.array(columns, np.int64).T
        to_bin = sparse.csr_matrix(
            (inside == 1, (np.arange(len(columns)), row * shape[1] + col)),
            shape=(len(columns), shape[0] * shape[1]),
            dtype=np.int64,
        )
        self.counts = (csc.astype(np.int64) @ to_bin).tocsr()[np.flatnonzero(is_gene)]
        self.ids = [i for i, keep in zip(self.ids, is_gene, strict=True) if keep]

    def patch(self, row0: int, col0: int) -> sparse.csr_matrix:
        """(G, 128 · 128) UMIs of a patch."""
        rows, cols = np.mgrid[row0 : row0 + PATCH_BINS, col0 : col0 + PATCH_BINS]
        return self.counts[:, (rows * self.tissue.shape[1] + cols).ravel()]

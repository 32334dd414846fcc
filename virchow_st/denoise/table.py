"""Denoised 8 µm bins beside their counts, as an AnnData file for scanpy.

Letters: n 8 µm bins, G genes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from virchow_st.denoise.fit import Rates
from virchow_st.denoise.slide import SlideCounts
from virchow_st.errors import ConfigError
from virchow_st.output.export.tables import CellTable, cell_names, write_h5ad
from virchow_st.runtime.atomic import new_output
from virchow_st.types import BIN_UM, CELL_BINS

MOST_VALUES = 1 << 31
"""Rates that are held and written at most, bins × genes: 8 GiB."""
COUNTS = "counts"
"""Name of the layer with the UMIs."""


def cell_table(slide: SlideCounts, rates: Rates, library: str) -> CellTable:
    """Rates and counts of the 8 µm bins that lie in tissue as a whole.

    ``X`` holds the expected UMIs per bin, (n, G) float32; the layer ``counts`` the UMIs, sparse;
    the column ``filled`` the share of a bin's 2 µm bins without counts, whose rates were filled in.

    Raises:
        ConfigError: More rates than `MOST_VALUES`, or no such bin.
    """
    places = np.concatenate([slide.place, slide.unseen])
    row, col = np.divmod(places, slide.tissue.shape[1])
    n_cols = slide.tissue.shape[1] // CELL_BINS
    cell, of, size = np.unique(
        row // CELL_BINS * n_cols + col // CELL_BINS, return_inverse=True, return_counts=True
    )
    whole = np.flatnonzero(size == CELL_BINS**2)
    n_genes = len(slide.panel)
    if not len(whole):
        raise ConfigError("h5ad: expected 8 µm bins that lie in tissue as a whole; found none")
    if len(whole) * n_genes > MOST_VALUES:
        raise ConfigError(
            f"h5ad: expected at most {MOST_VALUES:,} rates; got {len(whole):,} bins × {n_genes:,} "
            "genes; write the field, and of it the genes that you need: vst export FIELD --genes "
            "FILE --format h5ad"
        )
    into = csr_matrix((np.ones(len(of), np.float32), (of, np.arange(len(of)))))[whole]
    n_seen = len(slide.place)
    factors = into[:, :n_seen] @ rates.factors + into[:, n_seen:] @ rates.filled
    seen = slide.rows
    umis = into[:, :n_seen] @ csr_matrix((seen.count, seen.gene, seen.indptr), (n_seen, n_genes))
    umis.sort_indices()
    filled = np.asarray(into[:, n_seen:].sum(axis=1)).ravel() / CELL_BINS**2
    (row0, rest_row), (col0, rest_col) = (divmod(at, CELL_BINS) for at in slide.corner)
    rows, cols = np.divmod(cell[whole], n_cols)
    rows, cols = rows + row0, cols + col0
    return CellTable(
        values=factors @ rates.loadings.astype(np.float32).T,
        row=rows,
        col=cols,
        names=cell_names(rows, cols),
        corner_um=(float(BIN_UM * rest_col), float(BIN_UM * rest_row)),
        genes=slide.panel,
        library=library,
        layers={COUNTS: umis},
        obs={"filled": filled},
    )


def write_table(
    out: Path, slide: SlideCounts, rates: Rates, library: str, about: dict[str, Any]
) -> None:
    """Write `cell_table` as an AnnData file, completely or not at all."""
    table = cell_table(slide, rates, library)
    with new_output(out) as aside:
        write_h5ad(aside / "result", table, about)

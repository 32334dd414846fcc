"""Exposure of slides: what multiplies all rates of a bin and is no expression.

The expected UMIs of a gene in a bin are exposure × rate. The exposure of a tissue bin is its
slide's depth times the efficiencies of its row and of its column; outside tissue it is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.metrics.stripes import Stripes, estimate_stripes
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.store.format import PatchInfo
from virchow_st.store.reader import Store
from virchow_st.types import PATCH_BINS, PATCH_POSITIONS, Float32Array

_DECIMALS = 6  # in which efficiencies are kept and written


@dataclass(frozen=True)
class SlideExposure:
    """Depth of a slide, and efficiencies of its rows and columns of 2 µm bins.

    Attributes:
        depth: Total UMIs of all genes per 2 µm tissue bin, at row and column efficiencies of 1; 0
            without UMIs.
        row0, col0: array_row and array_col of the first row and column.
        rows, cols: Efficiencies of the rows and columns from there on, with their errors. Where
            there are no stripes, they are exactly 1.
    """

    depth: float
    row0: int
    col0: int
    rows: Stripes
    cols: Stripes

    @property
    def has_stripes(self) -> bool:
        """Whether any efficiency differs from 1."""
        return bool(self.rows.sd or self.cols.sd)

    def of_patch(self, info: PatchInfo) -> Float32Array:
        """Row × column efficiency of the bins of a patch, (128, 128) float32, depth left out.

        Raises:
            ConfigError: The patch lies outside the slide that was measured.
        """
        row, col = info.row0 - self.row0, info.col0 - self.col0
        rows = self.rows.efficiency[max(row, 0) : row + PATCH_BINS]
        cols = self.cols.efficiency[max(col, 0) : col + PATCH_BINS]
        if row < 0 or col < 0 or len(rows) < PATCH_BINS or len(cols) < PATCH_BINS:
            raise ConfigError(
                f"exposure: expected rows {info.row0} to {info.row0 + PATCH_BINS} and columns "
                f"{info.col0} to {info.col0 + PATCH_BINS} of the slide; it has "
                f"{len(self.rows.efficiency)} rows from {self.row0} and "
                f"{len(self.cols.efficiency)} columns from {self.col0}; train again"
            )
        return np.outer(rows, cols).astype(np.float32)

    def without_stripes(self) -> SlideExposure:
        """The same with all efficiencies 1, as ``--exposure depth`` takes it."""
        flat = (
            Stripes(np.ones(len(s.efficiency)), np.zeros(len(s.efficiency)), 0.0)
            for s in (self.rows, self.cols)
        )
        rows, cols = flat
        return SlideExposure(self.depth, self.row0, self.col0, rows, cols)

    def summary(self) -> dict[str, Any]:
        """Numbers that tell how large the stripes are, as ``vst inspect`` and results show them.

        ``row_sd`` and ``col_sd`` are standard deviations of the logarithms of the efficiencies, 0
        without stripes; ``row_se`` and ``col_se`` the root mean squares of their standard errors.
        """
        return {
            "umis_per_bin": self.depth,
            "row_sd": self.rows.sd,
            "row_se": self.rows.mean_se,
            "col_sd": self.cols.sd,
            "col_se": self.cols.mean_se,
        }


def slide_exposure(store: Store, progress: Progress = SILENT) -> SlideExposure:
    """Estimate the exposure of a store's slide from the total UMIs of all its patches.

    See `virchow_st.metrics.stripes` for the method. Takes 8 bytes per bin of the rectangle around
    the patches, and reads the counts once.

    Args:
        store: A finished store.
        progress: Receives the number of patches read.

    Raises:
        ConfigError: The store has no patches.
        StoreError: The store is damaged.

    Example:
        >>> found = slide_exposure(store)  # doctest: +SKIP
        >>> found.rows.efficiency.shape, found.has_stripes  # doctest: +SKIP
        ((3328,), True)
    """
    infos = store.patch_table
    if not infos:
        raise ConfigError(f"{store.path}: expected patches to measure the exposure of; found none")
    starts = np.array([(info.row0, info.col0) for info in infos], np.int64)
    row0, col0 = (int(x) for x in starts.min(axis=0))
    n_rows, n_cols = (int(n) for n in starts.max(axis=0) - (row0, col0) + PATCH_BINS)
    umis, tissue = np.zeros((n_rows, n_cols), np.float32), np.zeros((n_rows, n_cols), bool)
    for n, patch in enumerate(store):
        info = infos[n]
        row, col = info.row0 - row0, info.col0 - col0
        at = slice(row, row + PATCH_BINS), slice(col, col + PATCH_BINS)
        stored = patch.sparse_counts
        of_bins = np.bincount(stored.positions, stored.counts, PATCH_POSITIONS)
        umis[at] = of_bins.reshape(PATCH_BINS, PATCH_BINS)
        tissue[at] = patch.tissue_mask
        progress.step(n + 1, len(store), "patches read for their exposure", store.patient)
    total = float(umis[tissue].sum(dtype=np.float64))
    rows, cols = (s.rounded(_DECIMALS) for s in estimate_stripes(umis, tissue))
    n_exposed = float(rows.efficiency @ (tissue @ cols.efficiency))
    return SlideExposure(total / max(n_exposed, 1.0), row0, col0, rows, cols)

"""The maps of a prediction: factors, or mean and spread over runs, of the finished blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from virchow_st.field.bins import BinImages
from virchow_st.field.loadings import Loadings
from virchow_st.field.ngff import Folder
from virchow_st.field.write import FieldMaps
from virchow_st.kernels.pooling import sum_pool
from virchow_st.types import CELL_BINS, Array, BoolArray, Float32Array


class RateImages:
    """The field of a prediction, and with several runs ``spread_2um`` and ``spread_8um``.

    A pixel at 2 µm holds the expected UMIs of a 2 µm bin; a pixel at 8 µm those of an 8 µm bin, the
    sum over its sixteen 2 µm bins. The spread is the standard deviation over the runs (n − 1). Bins
    without a prediction, outside patches or left out by one of the runs, are NaN, and so is every
    coarser bin that holds one.

    Args:
        folder: the Zarr folder to write to.
        loadings: of the genes.
        n_runs: number of runs.
        shape: rows and columns of the 2 µm grid, multiples of 8.
    """

    def __init__(
        self, folder: Folder, loadings: Loadings, n_runs: int, shape: tuple[int, int]
    ) -> None:
        self._n_runs = n_runs
        self._field = FieldMaps(folder, loadings, shape)
        has_spread = n_runs > 1 and loadings.is_direct
        self._spread = (
            BinImages(folder, "spread", loadings.factor_names, shape) if has_spread else None
        )

    def write(self, row0: int, col0: int, rates: Float32Array, there: BoolArray) -> None:
        """Write the block that begins at bin (row0, col0).

        Args:
            row0, col0: first bin, multiples of 8.
            rates: (runs × genes, h, w) expected UMIs per 2 µm bin, NaN where not ``there`` and
                in bins left out.
            there: (h, w) bool, True inside patches.
        """
        if self._spread is None:
            if self._n_runs > 1:
                rates = np.where(np.isnan(rates).any(axis=0), np.float32(np.nan), rates)
            self._field.write(row0, col0, rates)
            return
        by_run = rates.reshape(self._n_runs, -1, *there.shape)
        at_8um = np.stack([sum_pool(run, CELL_BINS) for run in by_run])
        self._field.write(row0, col0, by_run.mean(axis=0), at_8um.mean(axis=0))
        self._spread.write(row0, col0, by_run.std(axis=0, ddof=1), at_8um.std(axis=0, ddof=1))

    def remove(self, row0: int, col0: int) -> None:
        """Remove a block from the disk, whatever state its files are in."""
        self._field.remove(row0, col0)
        if self._spread is not None:
            self._spread.remove(row0, col0)

    def read(self, row0: int, col0: int, shape: tuple[int, int]) -> Iterator[Array]:
        """A block as it lies on disk, all its maps; ``shape`` in bins."""
        yield from self._field.read(row0, col0, shape)
        if self._spread is not None:
            yield from self._spread.read(row0, col0, shape)

    def finish(self, provenance: dict[str, Any]) -> None:
        """Write what makes the folder a field; see `FieldMaps.finish`."""
        self._field.finish(provenance)

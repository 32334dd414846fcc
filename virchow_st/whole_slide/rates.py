"""The rates in the output: finished blocks of the stitcher as images at 2 and 8 µm."""

from __future__ import annotations

from collections import Counter

import numpy as np
import zarr

from virchow_st.kernels.pooling import sum_pool
from virchow_st.panel import Panel
from virchow_st.types import BIN_UM, BoolArray, Float32Array
from virchow_st.whole_slide.lattice import BLOCK_BINS, CELL_BINS
from virchow_st.whole_slide.ngff import Folder

LEVELS = 4
_KEPT_BITS = 13  # of a float32's 23 behind the point


class RateImages:
    """``rates_2um`` and ``rates_8um``, and with several runs ``spread_2um`` and ``spread_8um``.

    At 2 µm a pixel is the expected UMIs of a 2 µm bin, and coarser pyramid levels are its mean, so
    that a gene looks alike at any zoom. At 8 µm a pixel is the expected UMIs of an 8 µm bin, the
    sum of its sixteen. The spread is the standard deviation over the runs (n − 1). NaN is where
    nothing was predicted.

    Args:
        folder: where to.
        panel: its genes are the channels.
        n_runs: how many runs predict.
        shape: rows and columns of the 2 µm grid, multiples of 8.
    """

    def __init__(self, folder: Folder, panel: Panel, n_runs: int, shape: tuple[int, int]) -> None:
        self._n_runs = n_runs
        self._fine: dict[str, list[zarr.Array]] = {}
        self._coarse: dict[str, zarr.Array] = {}
        channels = channel_names(panel)
        coarse_shape = shape[0] // CELL_BINS, shape[1] // CELL_BINS
        for name in ("rates", "spread")[: 1 + (n_runs > 1)]:
            self._fine[name] = folder.add_image(
                f"{name}_2um", channels, shape, BIN_UM, LEVELS, dtype="float32",
                chunk=BLOCK_BINS, fill=np.nan, brightest=1, together=True,
            )  # fmt: skip
            (self._coarse[name],) = folder.add_image(
                f"{name}_8um", channels, coarse_shape, BIN_UM * CELL_BINS, 1, dtype="float32",
                chunk=BLOCK_BINS // CELL_BINS, fill=np.nan, brightest=4, together=True,
            )  # fmt: skip

    def write(self, row0: int, col0: int, rates: Float32Array, there: BoolArray) -> None:
        """Write a block from bin (row0, col0) on: (runs × genes, h, w), NaN where not ``there``."""
        by_run = rates.reshape(self._n_runs, -1, *there.shape)
        at_8um = np.stack([sum_pool(run, CELL_BINS) for run in by_run])
        self._write("rates", row0, col0, by_run.mean(axis=0), at_8um.mean(axis=0))
        if self._n_runs > 1:
            self._write("spread", row0, col0, by_run.std(axis=0, ddof=1), at_8um.std(0, ddof=1))

    def _write(
        self, name: str, row0: int, col0: int, at_2um: Float32Array, at_8um: Float32Array
    ) -> None:
        for level, array in enumerate(self._fine[name]):
            factor = 1 << level
            mean = at_2um if level == 0 else sum_pool(at_2um, factor) / factor**2
            _put(array, row0 // factor, col0 // factor, mean)
        _put(self._coarse[name], row0 // CELL_BINS, col0 // CELL_BINS, at_8um)


def _put(array: zarr.Array, row: int, col: int, values: Float32Array) -> None:
    _, h, w = values.shape
    array[:, row : row + h, col : col + w] = rounded(values)


def rounded(values: Float32Array) -> Float32Array:
    """Round float32 to 13 binary digits, 6e-5 of the value at most: so they take half the space."""
    dropped = 23 - _KEPT_BITS
    bits = np.asarray(values, np.float32).view(np.uint32)
    bits = (bits + np.uint32(1 << (dropped - 1))) & np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    return np.where(np.isnan(values), np.float32(np.nan), bits.view(np.float32))


def channel_names(panel: Panel) -> list[str]:
    """Symbols, and the gene's id instead where a symbol is missing or stands for several."""
    times = Counter(panel.symbols)
    return [
        symbol if symbol and times[symbol] == 1 else gene
        for gene, symbol in zip(panel.ids, panel.symbols, strict=True)
    ]

"""Reads what `simulate_cohort` wrote of one slide, and tests counts for being Poisson."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
from scipy import stats


class Slide(NamedTuple):
    folder: Path

    @property
    def square(self) -> Path:
        return self.folder / "outs" / "binned_outputs" / "square_002um"

    @property
    def image(self) -> np.ndarray:
        return tifffile.imread(self.folder / "tissue_image.tif")

    @property
    def homography(self) -> np.ndarray:
        return self.truth("homography")

    @property
    def bins(self) -> int:
        return self.truth("depth").shape[0]

    def truth(self, name: str) -> np.ndarray:
        with h5py.File(self.folder / "truth.h5") as f:
            return f[name].asstr()[:] if f[name].dtype.kind == "O" else f[name][:]

    def positions(self) -> pa.Table:
        return pq.read_table(self.square / "spatial" / "tissue_positions.parquet")

    def tissue(self) -> np.ndarray:
        table = self.positions()
        mask = np.zeros((self.bins, self.bins), bool)
        mask[table["array_row"], table["array_col"]] = table["in_tissue"].to_numpy() == 1
        return mask

    def counts(self, which: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Dense counts (G, bins, bins), and array_row and array_col of the columns."""
        with h5py.File(self.square / f"{which}_feature_bc_matrix.h5") as f:
            m = f["matrix"]
            rows, cols = np.array(
                [[int(b[8:13]), int(b[14:19])] for b in m["barcodes"][:].astype(str)]
            ).T
            column = np.repeat(np.arange(rows.size), np.diff(m["indptr"][:]))
            dense = np.zeros((m["shape"][0], self.bins, self.bins), np.int32)
            np.add.at(dense, (m["indices"][:], rows[column], cols[column]), m["data"][:])
        return dense, rows, cols

    def visible_rate(self, genes: slice = slice(None)) -> np.ndarray:
        """Rates (G, bins, bins) float64 of depth, loadings and programmes alone."""
        loadings, maps = (self.truth(name).astype(float) for name in ("loadings", "programmes"))
        return np.tensordot(loadings[genes], maps, axes=1) * self.truth("depth")


def assert_poisson(count: np.ndarray, rate: np.ndarray) -> None:
    """Pearson's chi-square of the Poisson law, over single bins, genes and rate classes.

    ``count`` and ``rate`` are (G, N), of genes and bins.
    """
    z = (count - rate) / np.sqrt(rate)
    n = z.size
    # E z² = 1 and var z² = 2 + 1/λ for Poisson counts: mean and variance of the law at once.
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs((z**2).mean() - 1) < 4 * np.sqrt((2 + 1 / rate).mean() / n)
    # Genes and bins on their own: sums of Poisson counts are Poisson.
    for axis in (0, 1):
        total, expected = count.sum(axis), rate.sum(axis)
        p = stats.chi2.sf(((total - expected) ** 2 / expected).sum(), total.size)
        assert 1e-4 < p < 1 - 1e-4
    # The full law within classes of equal rate: frequencies of 0, 1, 2 and more.
    order = np.argsort(rate.ravel())
    for part in np.array_split(order, 8)[2:]:
        lam, k = rate.ravel()[part], count.ravel()[part]
        observed = np.array([(k == 0).sum(), (k == 1).sum(), (k >= 2).sum()])
        p0, p1 = stats.poisson.pmf(0, lam), stats.poisson.pmf(1, lam)
        expected = np.array([p0.sum(), p1.sum(), (1 - p0 - p1).sum()])
        assert stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), 2) > 1e-4
    # Neighbouring genes and bins are independent given the rates.
    assert abs((z[:-1] * z[1:]).mean()) < 4 / np.sqrt(n)
    assert abs((z[:, :-1] * z[:, 1:]).mean()) < 4 / np.sqrt(n)

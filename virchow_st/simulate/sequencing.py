"""Sequencing depth and Poisson-distributed UMI counts of a simulated slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from virchow_st.simulate.fields import smooth_noise
from virchow_st.types import BIN_UM, Array, BoolArray, Float32Array, Int64Array

TOP_GENES = 50
_TOP_UMI = 2.5
_STRIPE_SD = 0.1
_LOCAL_SD, _LOCAL_UM = 0.1, 60.0


@dataclass(frozen=True)
class SlideCounts:
    """UMI counts of all bins, row-major, compressed by bin.

    ``indptr`` (bins² + 1,) int64; ``gene`` (nnz,) int64, ascending within a bin; ``count`` (nnz,)
    int32.
    """

    indptr: Int64Array
    gene: Int64Array
    count: Array

    def columns(self, order: Int64Array) -> SlideCounts:
        """Counts of the bins ``order`` (N,), in that order."""
        lengths = np.diff(self.indptr)[order]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        source = np.repeat(self.indptr[order] - indptr[:-1], lengths) + np.arange(indptr[-1])
        return SlideCounts(indptr, self.gene[source], self.count[source])


def draw_depth(
    rng: np.random.Generator, programmes: Float32Array, loadings: Float32Array, tissue: BoolArray
) -> Float32Array:
    """Draw the sequencing depth (R, C) float32 with row and column stripes and smooth local drift.

    It is scaled so that the `TOP_GENES` most abundant genes together have `_TOP_UMI` UMIs in an
    average tissue bin, so that 3-6 % of their counts are non-zero, and then by a factor of 0.79 to
    1.27 per patient.
    """
    rows, cols = tissue.shape
    patient = np.exp(rng.choice([-1, 1]) * rng.uniform(0.08, 0.24))
    stripes = np.exp(rng.normal(0, _STRIPE_SD, (rows, 1)) + rng.normal(0, _STRIPE_SD, (1, cols)))
    local = np.exp(_LOCAL_SD * smooth_noise(rng, max(rows, cols), _LOCAL_UM / BIN_UM))
    depth = stripes * local[:rows, :cols]
    weighted = (programmes[:, tissue] * depth[tissue]).astype(np.float64).mean(axis=1)
    means = np.sort(loadings @ weighted)[-TOP_GENES:]
    scaled: Float32Array = (depth * (patient * _TOP_UMI / means.sum())).astype(np.float32)
    return scaled


def draw_counts(
    rng: np.random.Generator,
    programmes: Float32Array,
    loadings: Float32Array,
    depth: Float32Array,
) -> SlideCounts:
    """Draw independent Poisson counts of rate ``depth * loadings @ programmes`` for every bin.

    The number of UMIs of a bin from programme k is Poisson(depth * programme_k * sum_g loading[g,
    k]), and each UMI belongs to gene g with probability loading[g, k] / sum. Random splits of a
    Poisson number are independent Poisson numbers, and their sums are Poisson. The distribution per
    (gene, bin) is therefore exact, at a cost proportional to the UMIs instead of genes x bins.
    """
    n_genes = loadings.shape[0]
    keys = []
    for k, programme in enumerate(programmes):
        share = np.cumsum(loadings[:, k].astype(np.float64))
        umis = rng.poisson(depth.astype(np.float64) * programme * share[-1]).ravel()
        bins = np.repeat(np.arange(umis.size), umis)
        genes = np.searchsorted(share, rng.random(bins.size) * share[-1], side="right")
        keys.append(bins * n_genes + genes)
    key, count = np.unique(np.concatenate(keys), return_counts=True)
    indptr = np.searchsorted(key, np.arange(depth.size + 1) * n_genes)
    return SlideCounts(indptr.astype(np.int64), key % n_genes, count.astype(np.int32))

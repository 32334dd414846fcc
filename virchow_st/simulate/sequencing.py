"""Poisson-distributed UMI counts of a simulated slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from virchow_st.simulate.hidden import HiddenVariation
from virchow_st.types import Array, Float32Array, Float64Array, Int64Array


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


def draw_counts(
    rng: np.random.Generator,
    programmes: Float32Array,
    loadings: Float32Array,
    depth: Float32Array,
    hidden: HiddenVariation | None = None,
) -> SlideCounts:
    """Draw independent Poisson counts for every bin.

    Without hidden variation the rate is ``depth * loadings @ programmes``. The number of UMIs of a
    bin from programme k is Poisson(depth * programme_k * sum_g loading[g, k]), and each UMI belongs
    to gene g with probability loading[g, k] / sum. Random splits of a Poisson number are
    independent Poisson numbers, and their sums are Poisson. The distribution per (gene, bin) is
    therefore exact, at a cost proportional to the UMIs instead of genes x bins. With hidden
    variation see `_draw_varied`.

    Args:
        rng: Source of the random numbers.
        programmes: (K, R, C) float32.
        loadings: (G, K) float32.
        depth: (R, C) float32.
        hidden: Factors of the rates, or None for none.
    """
    n_genes = loadings.shape[0]
    if hidden is None:
        keys = _draw_plain(rng, programmes, loadings, depth)
    else:
        keys = _draw_varied(rng, programmes, loadings, depth, hidden)
    key, count = np.unique(np.concatenate(keys), return_counts=True)
    indptr = np.searchsorted(key, np.arange(depth.size + 1) * n_genes)
    return SlideCounts(indptr.astype(np.int64), key % n_genes, count.astype(np.int32))


def _draw_plain(
    rng: np.random.Generator, programmes: Float32Array, loadings: Float32Array, depth: Float32Array
) -> list[Int64Array]:
    """Draw one number ``bin * n_genes + gene`` per UMI, without hidden variation."""
    keys = []
    for k, programme in enumerate(programmes):
        share = np.cumsum(loadings[:, k].astype(np.float64))
        umis = rng.poisson(depth.astype(np.float64) * programme * share[-1]).ravel()
        bins = np.repeat(np.arange(umis.size), umis)
        genes = np.searchsorted(share, rng.random(bins.size) * share[-1], side="right")
        keys.append(bins * len(loadings) + genes)
    return keys


def _draw_varied(
    rng: np.random.Generator,
    programmes: Float32Array,
    loadings: Float32Array,
    depth: Float32Array,
    hidden: HiddenVariation,
) -> list[Int64Array]:
    """Draw one number ``bin * n_genes + gene`` per UMI, with hidden variation.

    It goes through the cells between four knots, where the factor of gene g stays below a bound
    B_g. UMIs are drawn at the rate ``B_g * depth * loading[g] @ programmes`` as without hidden
    variation, and each is kept with probability factor / B_g. A Poisson process thinned in this way
    has exactly the rate ``factor * depth * loading[g] @ programmes`` (Lewis and Shedler, Naval Res.
    Logist. 26 (1979) 403-413).
    """
    (n_genes, _), (n_rows, n_cols), side = loadings.shape, depth.shape, hidden.knot_bins
    by_programme = np.ascontiguousarray(loadings.T, np.float64)
    genes = np.arange(n_genes)
    knot_cols = np.arange(-(-n_cols // side) + 1)
    keys = []
    for row0 in range(0, n_rows, side):
        rows = slice(row0, row0 + side)
        band: Float64Array = programmes[:, rows].astype(np.float64) * depth[rows]
        knots = hidden.knots(genes, np.arange(2) + row0 // side, knot_cols)
        along_rows = hidden.weights(row0 + np.arange(band.shape[1]))
        for col0 in range(0, n_cols, side):
            cell = band[:, :, col0 : col0 + side]
            corners = knots[:, :, col0 // side :][:, :, :2]
            # Weights are positive with squares of sum 1: no value exceeds this norm (Cauchy).
            bound = hidden.factor(np.linalg.norm(np.maximum(corners, 0), axis=(1, 2)))
            gene, place = _draw_cell(rng, by_programme * bound, cell.reshape(len(cell), -1))
            row, col = np.divmod(place, cell.shape[2])
            along_cols = hidden.weights(col0 + np.arange(cell.shape[2]))
            z = np.einsum("ni,nij,nj->n", along_rows[row], corners[gene], along_cols[col])
            kept = rng.random(gene.size) * bound[gene] < hidden.factor(z)
            keys.append((((row0 + row) * n_cols + col0 + col) * n_genes + gene)[kept])
    return keys


def _draw_cell(
    rng: np.random.Generator, loadings: Float64Array, programmes: Float64Array
) -> tuple[Int64Array, Int64Array]:
    """Draw UMIs at the rates ``loadings.T @ programmes``: their genes and bins, (N,) int64 each.

    ``loadings`` are (K, G), ``programmes`` (K, bins).
    """
    genes, bins = [], []
    for by_gene, by_bin in zip(np.cumsum(loadings, 1), np.cumsum(programmes, 1), strict=True):
        n = rng.poisson(by_gene[-1] * by_bin[-1])
        genes.append(np.searchsorted(by_gene, rng.random(n) * by_gene[-1], side="right"))
        bins.append(np.searchsorted(by_bin, rng.random(n) * by_bin[-1], side="right"))
    return np.concatenate(genes), np.concatenate(bins)

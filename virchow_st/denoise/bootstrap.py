"""Counts drawn from estimated rates, to which the estimate is fitted again.

Letters: n bins, G genes, K factors.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.sparse import csr_matrix

from virchow_st.denoise.slide import SlideCounts
from virchow_st.runtime.devices import core_count
from virchow_st.training.rows import SparseRows
from virchow_st.types import BIN_UM, PATCH_BINS, SCALES_UM, Float32Array, Float64Array, Int64Array


def draw_counts(
    factors: Float32Array, loadings: Float64Array, exposure: Float64Array, rng: np.random.Generator
) -> SparseRows:
    """Draw Poisson counts of all bins and genes at the rates of a field.

    The UMIs of a factor are drawn as a whole, and each falls into a bin and a gene by its shares,
    which gives the same distribution; the cost is that of the UMIs and not of bins × genes.

    Args:
        factors: (n, K) ≥ 0.
        loadings: (G, K) ≥ 0.
        exposure: (n,) > 0.
        rng: Source of the random numbers.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> factors, loadings = np.full((500, 1), 4.0, np.float32), np.array([[0.25], [0.5]])
        >>> drawn = draw_counts(factors, loadings, np.full(500, 2.0), rng)
        >>> (drawn.gene_totals / 500).round(1).tolist()  # 2 · 4 · 0.25 and 2 · 4 · 0.5
        [2.0, 4.0]
    """
    n_genes = len(loadings)
    keys = []
    for k in range(factors.shape[1]):
        by_bin = np.cumsum(factors[:, k] * exposure)
        by_gene = np.cumsum(loadings[:, k])
        if not (mass := by_bin[-1] * by_gene[-1]):
            continue
        n = rng.poisson(mass)
        # Uniform numbers lie below 1, so that no UMI falls beyond the last bin of any share.
        row = np.searchsorted(by_bin, rng.random(n) * by_bin[-1], side="right")
        gene = np.searchsorted(by_gene, rng.random(n) * by_gene[-1], side="right")
        row, gene = np.minimum(row, len(factors) - 1), np.minimum(gene, n_genes - 1)
        keys.append(row * n_genes + gene)
    key, count = np.unique(np.concatenate([np.empty(0, np.int64), *keys]), return_counts=True)
    row, gene = np.divmod(key, n_genes)
    return SparseRows(
        indptr=np.searchsorted(row, np.arange(len(factors) + 1)).astype(np.int64),
        gene=gene.astype(np.int32),
        count=count.astype(np.float32),
        exposure=exposure,
        n_genes=n_genes,
    )


def squares_of(slide: SlideCounts) -> list[Int64Array]:
    """The observed bins of each square of 128 bins that has any."""
    row, col = np.divmod(slide.place, slide.tissue.shape[1])
    square = row // PATCH_BINS * (slide.tissue.shape[1] // PATCH_BINS + 1) + col // PATCH_BINS
    order = np.argsort(square, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(square[order])) + 1)


def shared_error(
    held_out: SparseRows,
    factors: Float32Array,
    loadings: Float64Array,
    slide: SlideCounts,
) -> Float64Array:
    """Squared error of the factors at each scale, by counts that they were not fitted to.

    The held-out UMIs are divided among the factors by shares p, and ``r = UMIs − exposure · h`` is
    their surplus in a bin. The square of its sum over the bins of a cell is, in expectation, that
    of the error of h summed over the cell, and the Poisson variance, of which ``v = Σ y p²`` over
    the genes and bins of the cell is an unbiased estimate. Errors of neighbouring bins are alike,
    noise is not: a cell of many bins shows the error best.

    Args:
        held_out: Counts of the n bins.
        factors: (n, K) that were fitted to other counts of the same bins.
        loadings: (G, K).
        slide: Where the bins lie.

    Returns:
        ``Σ (R² − V)`` over cells of 2, 4, 8 and 16 µm and factors, UMIs², for each of the S squares
        of `squares_of`, (S, 4); by chance it may be negative.
    """
    sums = loadings.sum(0)
    row, col = np.divmod(slide.place, slide.tissue.shape[1])

    def error(bins: Int64Array) -> Float64Array:
        own = held_out.taken(bins)
        h = factors[bins].astype(np.float64)
        share = loadings[own.gene] * np.repeat(h, np.diff(own.indptr), axis=0)
        share /= np.maximum(share.sum(axis=1, keepdims=True), 1e-300)
        counts = csr_matrix((own.count, np.arange(len(share)), own.indptr), (len(bins), len(share)))
        surplus = counts @ share - own.exposure[:, None] * h * sums
        noise = float((counts @ share**2).sum())
        found = np.empty(len(SCALES_UM))
        for j, scale in enumerate(SCALES_UM):
            f = scale // BIN_UM
            cell = row[bins] % PATCH_BINS // f * PATCH_BINS + col[bins] % PATCH_BINS // f
            _, cell = np.unique(cell, return_inverse=True)
            into = csr_matrix((np.ones(len(cell)), (cell, np.arange(len(cell)))))
            found[j] = float(((into @ surplus) ** 2).sum()) - noise
        return found

    with ThreadPoolExecutor(core_count()) as pool:
        return np.array(list(pool.map(error, squares_of(slide))))

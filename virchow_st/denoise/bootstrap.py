"""Counts drawn from estimated rates, to which the estimate is fitted again.

Letters: n bins, G genes, K factors.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.sparse import csr_matrix

from virchow_st.runtime.devices import core_count
from virchow_st.training.rows import SparseRows
from virchow_st.types import Float32Array, Float64Array

_CHUNK = 1 << 14  # bins whose counts are divided at once


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


def shared_error(held_out: SparseRows, factors: Float32Array, loadings: Float64Array) -> float:
    """Squared error of the factors, by counts that they were not fitted to.

    The held-out UMIs are divided among the factors by shares p, and ``r = UMIs − exposure · h`` is
    their surplus in a bin. Its square is, in expectation, that of the error of h and the Poisson
    variance, of which ``v = Σ_g y p²`` is an unbiased estimate.

    Returns:
        ``Σ (r² − v)`` over bins and factors, UMIs²; by chance it may be negative.

    Example:
        Rates of 4 UMIs taken for 3; the squared error is 1 per bin:

        >>> rng = np.random.default_rng(0)
        >>> counts = SparseRows.from_dense(rng.poisson(4.0, (20000, 1)), np.ones(20000))
        >>> taken = np.full((20000, 1), 3, np.float32)
        >>> round(shared_error(counts, taken, np.ones((1, 1))) / 2e4, 1)
        1.0
    """
    sums = loadings.sum(0)

    def error(first: int) -> float:
        last = min(first + _CHUNK, len(held_out))
        at = slice(held_out.indptr[first], held_out.indptr[last])
        ends = held_out.indptr[first : last + 1] - held_out.indptr[first]
        h = factors[first:last].astype(np.float64)
        share = loadings[held_out.gene[at]] * np.repeat(h, np.diff(ends), axis=0)
        share /= np.maximum(share.sum(axis=1, keepdims=True), 1e-300)
        shape = last - first, len(share)
        counts = csr_matrix((held_out.count[at], np.arange(len(share)), ends), shape)
        surplus = counts @ share - held_out.exposure[first:last, None] * h * sums
        noise = counts @ share**2
        return float((surplus**2).sum() - noise.sum())

    with ThreadPoolExecutor(core_count()) as pool:
        return sum(pool.map(error, range(0, len(held_out), _CHUNK)))

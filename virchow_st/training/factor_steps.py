"""Steps of a Poisson factorisation with a prior on the loadings.

Letters: n rows, G genes, K factors.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from virchow_st.kernels.factorise import expected_umis
from virchow_st.training.rows import SparseRows
from virchow_st.types import Array, Float64Array, Int64Array

FLOOR = 1e-10
"""Smallest factor and loading; a value of 0 would stay 0 in a multiplicative update."""
_TINY = 1e-300  # exposed UMIs of a gene that no row measured, whose loading is then the prior's
_N_SINGLE = 10  # steps of a single factor
_N_CHUNKS = 64  # of rows or genes, computed in parallel


@dataclass(frozen=True)
class Step:
    """Result of a step.

    Attributes:
        factors, loadings: (n, K) and (G, K), after the step.
        log_likelihood: Of the factors and loadings that the step began with, without Σ ln x!.
        objective: The same plus their log prior.
    """

    factors: Float64Array
    loadings: Float64Array
    log_likelihood: float
    objective: float


class FactorModel:
    """Counts with mean ``e_n · Σ_k l_nk · f_gk``, and a gamma prior on the loadings f.

    Rows may have been measured for some of the genes only (``counts.coverage``); the likelihood is
    that of the measured genes.

    The log prior of a loading is ``a·(ln r − r + 1)`` with ``r = f_gk / m_g``, where m_g is the
    gene's share of all UMIs: a gamma distribution with mode m_g and shape 1 + a, up to a constant
    that makes it 0 at the mode.

    Args:
        counts: Rows of counts.
        prior: Strength a ≥ 0.
        pool: Threads that chunks are computed by.
    """

    def __init__(self, counts: SparseRows, prior: float, pool: ThreadPoolExecutor) -> None:
        shape = (len(counts), counts.n_genes)
        by_gene = csr_matrix((counts.count, counts.gene, counts.indptr), shape).tocsc()
        self._by_row = _Side.of(counts.indptr, counts.gene, counts.count)
        self._by_gene = _Side.of(by_gene.indptr, by_gene.indices, by_gene.data)
        self._exposure = counts.exposure[:, None]
        self._constant = float((counts.totals * np.log(counts.exposure)).sum())
        self._mean = counts.gene_shares[:, None]
        self._counts = counts
        self._prior, self._pool = prior, pool

    def step(self, factors: Float64Array, loadings: Float64Array) -> Step:
        """Update the factors and then the loadings (EM; Lee & Seung, NIPS 13, 2001, 556).

        Args:
            factors: (n, K) float64 > 0, l.
            loadings: (G, K) float64 > 0, f.
        """
        umis, log_sum = self._by_row.expected(factors, loadings, self._pool)
        share = self._counts.shares(loadings)
        total = self._expected_total(factors, share)
        log_likelihood = log_sum + self._constant - total
        objective = log_likelihood
        if self._prior > 0:
            ratio = loadings / self._mean
            objective += self._prior * float((np.log(ratio) - ratio + 1).sum())
        factors = np.maximum(umis / (self._exposure * share), FLOOR)
        umis, _ = self._by_gene.expected(loadings, factors, self._pool)
        expected = self._expected_of_genes(factors)
        loadings = (umis + self._prior) / (expected + self._prior / self._mean)
        return Step(factors, np.maximum(loadings, FLOOR), log_likelihood, objective)

    def lengthened(
        self, factors: Float64Array, loadings: Float64Array, step: Step, length: float
    ) -> tuple[Float64Array, Float64Array]:
        """Factors and loadings ``length`` times as far as the step went, in logarithms.

        They are scaled to the total of the counts. Length 1 is the step itself.
        """
        if length == 1:
            return step.factors, step.loadings
        more = length - 1.0
        factors = np.maximum(step.factors * (step.factors / factors) ** more, FLOOR)
        loadings = np.maximum(step.loadings * (step.loadings / loadings) ** more, FLOOR)
        total = self._expected_total(factors, self._counts.shares(loadings))
        return factors * (self._by_row.count.sum(dtype=np.float64) / total), loadings

    def _expected_total(self, factors: Float64Array, share: Float64Array) -> float:
        """Expected UMIs of all measured counts, from `SparseRows.shares` of the loadings."""
        if len(share) == 1:
            return float(((self._exposure * factors).sum(0) * share[0]).sum())
        return float((self._exposure * factors * share).sum())

    def _expected_of_genes(self, factors: Float64Array) -> Float64Array:
        """Exposed UMIs of each factor in the rows that measured a gene, (K,) or (G, K)."""
        exposed = self._exposure * factors
        if self._counts.coverage is None:
            return np.asarray(exposed.sum(0))
        return np.maximum(self._counts.coverage.of_rows(exposed), _TINY)


def single_factor(counts: SparseRows) -> float:
    """Log-likelihood of a single factor at its maximum: row total × gene total / total.

    With coverage the maximum has no closed form; it is approached in a few steps.
    """
    rows, genes = counts.totals, counts.gene_totals
    if counts.coverage is not None:
        return _single_of_measured(counts)
    n = rows.sum()
    log_sums = [(x[x > 0] * np.log(x[x > 0])).sum() for x in (rows, genes)]
    return float(sum(log_sums) - n * np.log(n) - n)


def _single_of_measured(counts: SparseRows) -> float:
    """`single_factor` of rows that were measured for some of the genes."""
    assert counts.coverage is not None
    exposure, totals = counts.exposure[:, None], counts.totals[:, None]
    f_G1 = counts.gene_shares[:, None]
    for _ in range(_N_SINGLE):
        l_n1 = np.maximum(totals / (exposure * counts.shares(f_G1)), FLOOR)
        exposed = counts.coverage.of_rows(exposure * l_n1)
        f_G1 = np.maximum(counts.gene_totals[:, None] / np.maximum(exposed, FLOOR), FLOOR)
    rate = (exposure * l_n1)[counts.row, 0] * f_G1[counts.gene, 0]
    total = (exposure * l_n1 * counts.shares(f_G1)).sum()
    return float(counts.count @ np.log(rate) - total)


@dataclass(frozen=True)
class _Side:
    """The counts by row or by gene, and the limits of the chunks computed in parallel."""

    start: Int64Array
    index: Array
    count: Array
    limits: Int64Array

    @classmethod
    def of(cls, start: Array, index: Array, count: Array) -> _Side:
        """Divide rows into chunks with about equally many counts each."""
        inner = np.searchsorted(start, np.linspace(0, start[-1], _N_CHUNKS + 1)[1:-1])
        limits = np.unique(np.concatenate([[0], inner, [len(start) - 1]]))
        return cls(start.astype(np.int64), index.astype(np.int32), count.astype("f4"), limits)

    def expected(
        self, own: Float64Array, other: Float64Array, pool: ThreadPoolExecutor
    ) -> tuple[Float64Array, float]:
        """Expected UMIs of each factor, (len(own), K), and ``Σ x ln λ`` without exposures."""
        out, log_sums = np.empty_like(own), np.empty(len(own))

        def compute(first: int, last: int) -> None:
            expected_umis(
                self.start, self.index, self.count, own, other, first, last, out, log_sums
            )

        list(pool.map(compute, self.limits[:-1].tolist(), self.limits[1:].tolist()))
        return out, float(log_sums.sum())

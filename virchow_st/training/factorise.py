"""Poisson factorisation of counts: the loadings that a rate field of many genes starts from.

The counts x of row i and gene g are modelled as Poisson with mean ``e_i · Σ_k l_ik · f_gk``, where
e is the exposure, l ≥ 0 the factors and f ≥ 0 the loadings. The fit is by the multiplicative
updates of Lee & Seung (NIPS 13, 2001, 556), which are an EM algorithm, so that the likelihood never
falls. They cost time proportional to the number of non-zero counts, times K.

Letters: n rows, G genes, K factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from virchow_st.kernels.factorise import expected_umis
from virchow_st.runtime.devices import core_count
from virchow_st.training.rows import MOST_ROWS, SparseRows
from virchow_st.types import Array, Float64Array, Int64Array

FLOOR = 1e-10
"""Smallest factor and loading; a value of 0 would stay 0 in a multiplicative update."""
_LEAST_STEPS = 10  # the first steps leave a start at which all factors are nearly alike
_N_CHUNKS = 64  # of rows, computed in parallel


@dataclass(frozen=True)
class Factorisation:
    """A factorisation of n rows of counts into K factors, in falling order of their UMIs.

    Attributes:
        loadings: (G, K) float64 ≥ 1e-10, each column sums to 1: the share of each gene in the UMIs
            of a factor.
        factors: (n, K) float64 ≥ 1e-10, UMIs of all genes per 2 µm tissue bin that a factor has in
            a row.
        log_likelihood: (n_steps + 1,) float64, before each step and at the end; without the term
            Σ ln x!, which depends on the counts alone.
    """

    loadings: Float64Array
    factors: Float64Array
    log_likelihood: Float64Array


def factorise(
    counts: SparseRows,
    n_factors: int,
    seed: int,
    n_steps: int = 100,
    tolerance: float = 1e-3,
) -> Factorisation:
    """Fit factors and loadings by maximum likelihood.

    A step updates the factors and then the loadings. The fit ends after ``n_steps``, or when the
    last step added less than ``tolerance`` of what the likelihood has risen above that of a single
    factor. The result does not depend on the number of threads.

    Args:
        counts: Rows of counts, with their exposures.
        n_factors: Number of factors K.
        seed: Seed of the start, see `start_loadings`.
        n_steps: Largest number of steps.
        tolerance: Smallest relative gain of a step; 0 does all steps.

    Raises:
        ValueError: ``n_factors`` is below 1, or there are no counts.

    Example:
        Rows that are mixtures of two programmes of three genes:

        >>> rng = np.random.default_rng(0)
        >>> programmes = np.array([[0.8, 0.2, 0.0], [0.0, 0.1, 0.9]])
        >>> mean = 64 * rng.gamma(0.5, 20.0, (200, 2)) @ programmes
        >>> rows = SparseRows.from_dense(rng.poisson(mean), exposure=np.full(200, 64.0))
        >>> found = factorise(rows, n_factors=2, seed=0, n_steps=300, tolerance=0)
        >>> found.loadings.T[np.argsort(found.loadings[0])].round(1)
        array([[0. , 0.1, 0.9],
               [0.8, 0.2, 0. ]])
    """
    if n_factors < 1:
        raise ValueError(f"n_factors: expected at least 1; got {n_factors}")
    if not counts.count.sum() > 0:
        raise ValueError("counts: expected at least one UMI; got none")
    by_row, by_gene = _Side.of(counts)
    e = counts.exposure[:, None]
    f = start_loadings(counts, n_factors, seed)
    l_nK = np.repeat(counts.totals[:, None] / (n_factors * e), n_factors, axis=1)
    l_nK = np.maximum(l_nK, FLOOR)
    single, constant = _single_factor(counts), float(counts.totals @ np.log(counts.exposure))
    history: list[float] = []
    with ThreadPoolExecutor(core_count()) as pool:
        for step in range(n_steps + 1):
            umis, log_sum = by_row.expected(l_nK, f, pool)
            history.append(log_sum + constant - float((counts.exposure @ l_nK) @ f.sum(0)))
            gain = history[-1] - history[-2] if step else np.inf
            few = step >= _LEAST_STEPS and gain <= tolerance * (history[-1] - single)
            if step == n_steps or (few and tolerance > 0):
                break
            l_nK = np.maximum(umis / (e * f.sum(0)), FLOOR)
            umis, _ = by_gene.expected(f, l_nK, pool)
            f = umis / (counts.exposure @ l_nK)
            total = np.maximum(f.sum(0), FLOOR)
            f, l_nK = np.maximum(f / total, FLOOR), np.maximum(l_nK * total, FLOOR)
    total = f.sum(0)
    l_nK, f = l_nK * total, f / total
    order = np.argsort(-(counts.exposure @ l_nK), kind="stable")
    return Factorisation(f[:, order], l_nK[:, order], np.array(history))


def start_loadings(counts: SparseRows, n_factors: int, seed: int) -> Float64Array:
    """TODO"""
    rng = np.random.default_rng(seed)
    mean = counts.gene_totals + 0.5
    mean /= mean.sum()
    group = rng.integers(0, n_factors, len(counts))
    umis = np.zeros((counts.n_genes, n_factors))
    np.add.at(umis, (counts.gene, group[counts.row]), counts.count)
    umis += umis.sum(0) * mean[:, None] + 1e-3
    return umis / umis.sum(0)


def _single_factor(counts: SparseRows) -> float:
    """Largest log-likelihood of a single factor: every row has the same mix of genes."""
    rows, genes = counts.totals, counts.gene_totals
    some_rows, some_genes = rows[rows > 0], genes[genes > 0]
    n = rows.sum()
    return float(
        some_rows @ np.log(some_rows) + some_genes @ np.log(some_genes) - n * np.log(n) - n
    )


@dataclass(frozen=True)
class _Side:
    """Rows or columns of a sparse matrix, with the limits of the chunks computed in parallel."""

    start: Int64Array
    index: Array
    count: Array
    limits: Int64Array

    @classmethod
    def of(cls, counts: SparseRows) -> tuple[_Side, _Side]:
        """The rows, and the same counts by gene."""
        shape = (len(counts), counts.n_genes)
        by_gene = csr_matrix((counts.count, counts.gene, counts.indptr), shape).tocsc()
        return (
            cls._cut(counts.indptr, counts.gene, counts.count),
            cls._cut(by_gene.indptr, by_gene.indices, by_gene.data),
        )

    @classmethod
    def _cut(cls, start: Array, index: Array, count: Array) -> _Side:
        """Chunks with about equally many counts each."""
        start = start.astype(np.int64)
        inner = np.searchsorted(start, np.linspace(0, start[-1], _N_CHUNKS + 1)[1:-1])
        limits = np.unique(np.concatenate([[0], inner, [len(start) - 1]]))
        return cls(start, index.astype(np.int32), count.astype(np.float32), limits)

    def expected(
        self, own: Float64Array, other: Float64Array, pool: ThreadPoolExecutor
    ) -> tuple[Float64Array, float]:
        """Expected UMIs of each factor, and ``Σ x ln λ`` without exposures."""
        out, log_sums = np.empty_like(own), np.empty(len(own))

        def compute(first: int, last: int) -> None:
            args = (self.start, self.index, self.count, own, other, first, last, out, log_sums)
            expected_umis(*args)

        for _ in pool.map(compute, self.limits[:-1].tolist(), self.limits[1:].tolist()):
            pass
        return out, float(log_sums.sum())


def choose_n_factors(counts, candidates=(8, 16, 32, 64), seed=0):
    return 32

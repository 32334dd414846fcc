"""Poisson factorisation of counts: the loadings that a rate field of many genes starts from.

The count x of row n and gene g is modelled as Poisson with mean ``e_n · Σ_k l_nk · f_gk``, where e
is the exposure, l ≥ 0 the factors and f ≥ 0 the loadings. The fit is by the multiplicative updates
of Lee & Seung (NIPS 13, 2001, 556), which are an EM algorithm, so that the likelihood never falls.
A step costs time proportional to the number of non-zero counts times K.

Letters: n rows, G genes, K factors.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from virchow_st.kernels.factorise import expected_umis
from virchow_st.runtime.devices import core_count
from virchow_st.training.factor_start import start_loadings
from virchow_st.training.rows import SparseRows
from virchow_st.types import Array, Float64Array, Int64Array

FLOOR = 1e-10
"""Smallest factor and loading; a value of 0 would stay 0 in a multiplicative update."""
_LEAST_STEPS = 10
_N_CHUNKS = 64  # of rows or genes, computed in parallel


@dataclass(frozen=True)
class Factorisation:
    """A factorisation of n rows of counts into K factors, in falling order of their UMIs.

    Attributes:
        loadings: (G, K) float64 > 0, each column sums to 1: the share of each gene in the UMIs of a
            factor.
        factors: (n, K) float64 > 0, UMIs of all genes per 2 µm tissue bin that a factor has in a
            row.
        log_likelihood: (steps + 1,) float64, before each step and at the end; without the term
            Σ ln x!, which depends on the counts alone.
    """

    loadings: Float64Array
    factors: Float64Array
    log_likelihood: Float64Array


def factorise(
    counts: SparseRows, n_factors: int, seed: int, n_steps: int = 100, tolerance: float = 1e-4
) -> Factorisation:
    """Fit factors and loadings by maximum likelihood.

    A step updates the factors and then the loadings. The fit ends after ``n_steps``, or when the
    last step added less than ``tolerance`` of the gain over a single factor, for which all rows
    have the same mix of genes. The result does not depend on the number of threads.

    Args:
        counts: Rows of counts, with their exposures.
        n_factors: Number of factors K.
        seed: Seed of the start, see `training.factor_start.start_loadings`.
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
    exposure = counts.exposure[:, None]
    f_GK = start_loadings(counts, n_factors, seed)
    depth = counts.totals[:, None] / exposure
    l_nK = np.maximum(np.repeat(depth / n_factors, n_factors, axis=1), FLOOR)
    least, constant = _single_factor(counts), (counts.totals * np.log(counts.exposure)).sum()
    by_row, by_gene = _Side.both(counts)
    history: list[float] = []
    with ThreadPoolExecutor(core_count()) as pool:
        for step in range(n_steps + 1):
            umis, log_sum = by_row.expected(l_nK, f_GK, pool)
            total = (exposure * l_nK).sum(0) * f_GK.sum(0)
            history.append(float(log_sum + constant - total.sum()))
            if step == n_steps or _has_ended(history, least, tolerance):
                break
            l_nK = np.maximum(umis / (exposure * f_GK.sum(0)), FLOOR)
            umis, _ = by_gene.expected(f_GK, l_nK, pool)
            f_GK = umis / (exposure * l_nK).sum(0)
            total = np.maximum(f_GK.sum(0), FLOOR)
            l_nK, f_GK = np.maximum(l_nK * total, FLOOR), np.maximum(f_GK / total, FLOOR)
    total = f_GK.sum(0)
    l_nK, f_GK = l_nK * total, f_GK / total
    order = np.argsort(-(exposure * l_nK).sum(0), kind="stable")
    return Factorisation(
        np.ascontiguousarray(f_GK[:, order]),
        np.ascontiguousarray(l_nK[:, order]),
        np.array(history),
    )


def responsibilities(counts: SparseRows, found: Factorisation) -> Float64Array:
    """Expected UMIs of each factor in each row, given its counts.

    Args:
        counts: The rows that ``found`` was fitted to.
        found: Factors and loadings.

    Returns:
        (n, K) float64, ``Σ_g x_ng · l_nk · f_gk / Σ_j l_nj · f_gj``; a row sums to the row's UMIs.

    Raises:
        ValueError: Rows or genes of another number than those of ``found``.

    Example:
        >>> rows = SparseRows.from_dense(np.array([[4, 0], [1, 3]]), np.array([64.0, 64.0]))
        >>> responsibilities(rows, factorise(rows, n_factors=2, seed=0)).sum(1).round(6)
        array([4., 4.])
    """
    expected = (len(found.factors), len(found.loadings))
    if (len(counts), counts.n_genes) != expected:
        raise ValueError(
            f"counts: expected {expected[0]} rows and {expected[1]} genes, as in the "
            f"factorisation; got {len(counts)} and {counts.n_genes}"
        )
    with ThreadPoolExecutor(core_count()) as pool:
        by_row = _Side.of(counts.indptr, counts.gene, counts.count)
        return by_row.expected(found.factors, found.loadings, pool)[0]


def _has_ended(history: list[float], least: float, tolerance: float) -> bool:
    """Whether the last step's gain is small; never in the first steps, or with tolerance 0."""
    if len(history) <= _LEAST_STEPS or tolerance == 0:
        return False
    return history[-1] - history[-2] < tolerance * abs(history[-1] - least)


def _single_factor(counts: SparseRows) -> float:
    """Log-likelihood of a single factor at its maximum: row total × gene total / total."""
    rows, genes = counts.totals, counts.gene_totals
    n = rows.sum()
    log_sums = [(x[x > 0] * np.log(x[x > 0])).sum() for x in (rows, genes)]
    return float(sum(log_sums) - n * np.log(n) - n)


@dataclass(frozen=True)
class _Side:
    """The counts by row or by gene, and the limits of the chunks computed in parallel."""

    start: Int64Array
    index: Array
    count: Array
    limits: Int64Array

    @classmethod
    def both(cls, counts: SparseRows) -> tuple[_Side, _Side]:
        """The counts by row, and the same counts by gene."""
        shape = (len(counts), counts.n_genes)
        by_gene = csr_matrix((counts.count, counts.gene, counts.indptr), shape).tocsc()
        return (
            cls.of(counts.indptr, counts.gene, counts.count),
            cls.of(by_gene.indptr, by_gene.indices, by_gene.data),
        )

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

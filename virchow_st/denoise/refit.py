"""Loadings fitted again to the factors at 2 µm.

A bin of 16 µm mixes what a nucleus and its surroundings express, so that loadings that were learned
there are blurred between programmes that lie side by side. Factors at 2 µm keep them apart. EM with
the factors fixed divides each gene's UMIs among them, and the two are fitted in turn. Genes with
few UMIs would follow their noise: the earlier loadings count as a number of UMIs of every gene
beside its own.

Letters: n tissue bins, G genes, K factors.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.sparse import csc_matrix, csr_matrix

from virchow_st.denoise.ems import fit_more
from virchow_st.denoise.smooth import Smoother
from virchow_st.kernels.factorise import expected_umis
from virchow_st.runtime.devices import core_count
from virchow_st.training.rows import SparseRows
from virchow_st.types import Float32Array, Float64Array

N_ROUNDS = 6
"""Rounds, each of some steps of the loadings and then of the factors."""
_STEPS = 3
_LEAST = 1e-12  # share of a gene in a factor; one of 0 would stay 0
_GENES = 256  # genes whose loadings a thread computes at once


def refit(
    counts: SparseRows,
    factors: Float32Array,
    loadings: Float64Array,
    smoother: Smoother,
    width_um: float,
    prior_umis: float,
) -> tuple[Float64Array, Float32Array]:
    """Fit loadings and factors in turn, starting from factors of a width.

    Args:
        counts: Counts of the n tissue bins.
        factors: (n, K) that were fitted with the loadings, by the Gaussian of ``width_um``.
        loadings: (G, K) > 0, each column sums to 1.
        smoother: Of the n bins.
        width_um: Standard deviation of the Gaussian, µm.
        prior_umis: UMIs of a gene as which its loadings so far count.

    Returns:
        (G, K) loadings > 0, whose columns sum to 1, and (n, K) factors. The result does not depend
        on the number of threads.
    """
    shape = len(counts), counts.n_genes
    by_gene = csr_matrix((counts.count, counts.gene, counts.indptr), shape).tocsc()
    earlier, factors = loadings, factors.copy()
    with ThreadPoolExecutor(core_count()) as pool:
        for _ in range(N_ROUNDS):
            totals = counts.exposure @ factors
            prior = earlier * totals
            rows = prior.sum(axis=1, keepdims=True)
            for _ in range(_STEPS):
                umis = _divided(by_gene, loadings, factors, pool)
                of_gene = umis.sum(axis=1, keepdims=True)
                share = (umis + prior_umis * prior / rows) / (of_gene + prior_umis)
                # A gene without UMIs among these counts keeps what it is expected to have.
                loadings = np.maximum(share * np.where(of_gene > 0, of_gene, rows) / totals, _LEAST)
                loadings /= loadings.sum(0)
            fit_more(counts, factors, loadings, smoother, width_um, pool)
    return loadings, factors


def _divided(
    by_gene: csc_matrix, loadings: Float64Array, factors: Float32Array, pool: ThreadPoolExecutor
) -> Float64Array:
    """(G, K) UMIs of each gene, divided among the factors by their share of its rate in a bin."""
    umis, log_sums = np.empty_like(loadings), np.empty(len(loadings))
    start = by_gene.indptr.astype(np.int64)

    def compute(first: int) -> None:
        last = min(first + _GENES, len(loadings))
        expected_umis(
            start, by_gene.indices, by_gene.data, loadings, factors, first, last, umis, log_sums
        )

    list(pool.map(compute, range(0, len(loadings), _GENES)))
    return umis

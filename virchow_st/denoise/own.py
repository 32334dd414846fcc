"""Fields of single genes on top of the shared factors.

The factors hold what genes have in common. A gene that varies by itself, and has UMIs enough to
show it, is given a map of its own: its rate by the factors times a smooth ratio,

``r = (4π s² · G ∗ x + a) / (4π s² · G ∗ λ + a)``,

where x are its counts, λ its rate by the factors, G a Gaussian of s bins, and 4π s² the bins that
it averages over. That is the posterior mean of a ratio whose prior is a gamma distribution with
mean 1 that weighs as much as a UMIs. Both s and a are chosen, for every gene, by held-out counts; a
gene for which no ratio predicts them better stays with the factors.

Letters: n tissue bins, G genes, K factors.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csc_matrix

from virchow_st.denoise.smooth import Smoother
from virchow_st.runtime.devices import core_count
from virchow_st.training.rows import SparseRows
from virchow_st.types import BIN_UM, Float32Array, Float64Array, Int64Array

N_CANDIDATES = 128
"""Genes that may get a map of their own: those with most UMIs."""
MOST_OWN = 64
"""Most genes that do: those with the largest gain."""
LEAST_GAIN = 4.0
"""Smallest gain in held-out log-likelihood; a gain by chance among the choices is smaller."""
_WIDTHS_UM = (4.0, 5.7, 8.0, 11.3, 16.0, 22.6, 32.0, 64.0)
_PRIOR_UMIS = (0.5, 2.0, 8.0)


@dataclass(frozen=True)
class OwnRatio:
    """How the ratio of one gene is estimated.

    Attributes:
        gene: Index of the gene.
        width_um: Standard deviation of the Gaussian, µm.
        prior_umis: Weight a of the prior, UMIs.
        gain: Log-likelihood of the held-out counts above that of the factors alone.
    """

    gene: int
    width_um: float
    prior_umis: float
    gain: float


def choose_own(
    fitted: SparseRows,
    held_out: SparseRows,
    factors: Float32Array,
    loadings: Float64Array,
    smoother: Smoother,
) -> list[OwnRatio]:
    """Find genes whose held-out counts a ratio of their own predicts better.

    Args:
        fitted: Counts that the factors were fitted to.
        held_out: The other counts of the same bins.
        factors: (n, K).
        loadings: (G, K).
        smoother: Of the n bins.

    Returns:
        At most `MOST_OWN` genes, in rising order.
    """
    totals = fitted.gene_totals
    genes = np.sort(np.argsort(-totals, kind="stable")[:N_CANDIDATES])
    genes = genes[totals[genes] > 0]
    x, y = gene_columns(fitted, genes), gene_columns(held_out, genes)
    share, rest = fitted.exposure.astype(np.float32), held_out.exposure

    def best(i: int) -> OwnRatio:
        rate = factors @ loadings[genes[i]].astype(np.float32)
        counts, left = column(x, i), column(y, i)
        there = np.flatnonzero(left)
        found = OwnRatio(int(genes[i]), 0.0, 0.0, 0.0)
        for width_um in _WIDTHS_UM:
            seen = smoother.smoothed(counts, width_um)
            expected = smoother.smoothed(rate * share, width_um)
            for a in _PRIOR_UMIS:
                ratio = _ratio(seen, expected, width_um, a)
                more = float(rest @ (rate * (ratio - 1)))
                gain = float(left[there] @ np.log(ratio[there]) - more)
                if gain > found.gain:
                    found = OwnRatio(found.gene, width_um, a, gain)
        return found

    with ThreadPoolExecutor(core_count()) as pool:
        every = [ratio for ratio in pool.map(best, range(len(genes))) if ratio.gain > LEAST_GAIN]
    every.sort(key=lambda ratio: -ratio.gain)
    return sorted(every[:MOST_OWN], key=lambda ratio: ratio.gene)


def with_own(
    counts: SparseRows,
    factors: Float32Array,
    loadings: Float64Array,
    smoother: Smoother,
    own: list[OwnRatio],
) -> tuple[Float32Array, Float64Array]:
    """Add a map of its own for each of J genes, which leave the shared factors.

    A gene's map has the sum of its counts.

    Returns:
        (n, K + J) factors and (G, K + J) loadings.
    """
    if not own:
        return factors, loadings
    genes = np.array([ratio.gene for ratio in own], np.int64)
    x, exposure = gene_columns(counts, genes), counts.exposure.astype(np.float32)
    more = np.zeros((len(loadings), len(own)))
    more[genes, np.arange(len(own))] = 1
    shared = loadings.copy()
    shared[genes] = 0
    maps = np.empty((len(factors), len(own)), np.float32)

    def fill(i: int) -> None:
        rate = factors @ loadings[genes[i]].astype(np.float32)
        seen = smoother.smoothed(column(x, i), own[i].width_um)
        expected = smoother.smoothed(rate * exposure, own[i].width_um)
        rate *= _ratio(seen, expected, own[i].width_um, own[i].prior_umis)
        total = float(column(x, i).sum(dtype=np.float64))
        maps[:, i] = rate * np.float32(total / max(float(counts.exposure @ rate), 1e-30))

    with ThreadPoolExecutor(core_count()) as pool:
        list(pool.map(fill, range(len(own))))
    return np.concatenate([factors, maps], axis=1), np.concatenate([shared, more], axis=1)


def _ratio(
    seen: Float32Array, expected: Float32Array, width_um: float, prior_umis: float
) -> Float32Array:
    """Posterior mean of the ratio of the counts to those expected, both per bin and smoothed."""
    prior = np.float32(prior_umis / (4 * math.pi * (width_um / BIN_UM) ** 2))
    ratio: Float32Array = (seen + prior) / (expected + prior)
    return ratio


def gene_columns(rows: SparseRows, genes: Int64Array) -> csc_matrix:
    """The counts of some genes in rising order, (n, len(genes)), by gene."""
    chosen = np.zeros(rows.n_genes, bool)
    chosen[genes] = True
    there = np.flatnonzero(chosen[rows.gene])
    row = np.searchsorted(rows.indptr, there, side="right") - 1
    col = np.searchsorted(genes, rows.gene[there])
    return csc_matrix((rows.count[there], (row, col)), (len(rows), len(genes)))


def column(matrix: csc_matrix, i: int) -> Float32Array:
    """A column of a sparse matrix, dense."""
    dense = np.zeros(matrix.shape[0], np.float32)
    span = slice(matrix.indptr[i], matrix.indptr[i + 1])
    dense[matrix.indices[span]] = matrix.data[span]
    return dense

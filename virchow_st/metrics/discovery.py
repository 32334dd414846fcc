"""How many genes are predicted beyond chance, and scores by abundance.

With thousands of genes some correlate with any prediction by chance. The correlations of null
predictions, such as those made for other patches, show how large chance correlations are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from virchow_st.types import BoolArray, Float64Array, Int64Array

N_GROUPS = 10
"""Groups of genes of `by_decile`."""


@dataclass(frozen=True)
class Discovery:
    """Genes that are predicted beyond chance.

    Attributes:
        n_predicted: Number of genes predicted.
        n_tested: Number of genes whose correlations are all defined.
        predicted: (G,) bool.
        q_value: (G,) float64, smallest false discovery rate at which a gene counts as predicted;
            NaN for a gene that was not tested.
    """

    n_predicted: int
    n_tested: int
    predicted: BoolArray
    q_value: Float64Array


def predicted_genes(pcc: Float64Array, null_pcc_draws: Float64Array, q: float = 0.05) -> Discovery:
    """Genes whose correlation exceeds that of null predictions, at a false discovery rate.

    The procedure is the significance analysis of Tusher, Tibshirani & Chu (PNAS 98, 2001, 5116)
    for one-sided tests. The statistic of a gene is ``d = (r − m) / (s + s₀)``, with m and s the
    mean and standard deviation of its null draws and s₀ the median of s over genes, which keeps d
    from being large only because few draws happen to be alike. The same statistic of each null
    draw against the other draws shows which values of d occur by chance. The p-value of a gene is
    the share of these values, over all draws and genes, that are at least as large as its own; the
    q-values are those of Benjamini & Hochberg (J. R. Stat. Soc. B 57, 1995, 289).

    No distribution is assumed for the null correlations, and genes may be correlated with each
    other. The rate holds on average over all genes; genes with very few UMIs, whose null
    correlations are far more skewed than those of the others, are better left out by NaN.

    Args:
        pcc: (G,) correlation of each gene; NaN where undefined.
        null_pcc_draws: (D, G) correlation of each gene with D ≥ 3 null predictions.
        q: False discovery rate, between 0 and 1.

    Raises:
        ValueError: Shapes that do not match, fewer than three draws, or q out of range.

    Example:
        200 genes of 1,000 are predicted:

        >>> rng = np.random.default_rng(0)
        >>> nulls = rng.normal(0.0, 0.01, (8, 1000))
        >>> pcc = rng.normal(0.0, 0.01, 1000)
        >>> pcc[:200] += 0.1
        >>> found = predicted_genes(pcc, nulls)
        >>> int(found.predicted[:200].sum()), int(found.predicted[200:].sum()) <= 20
        (200, True)
    """
    if null_pcc_draws.ndim != 2 or null_pcc_draws.shape[1:] != pcc.shape:
        raise ValueError(
            f"null_pcc_draws: expected shape (D, {len(pcc)}); got {null_pcc_draws.shape}"
        )
    if len(null_pcc_draws) < 3:
        raise ValueError(f"null_pcc_draws: expected at least 3 draws; got {len(null_pcc_draws)}")
    if not 0 < q < 1:
        raise ValueError(f"q: expected a rate between 0 and 1; got {q}")
    tested = ~(np.isnan(pcc) | np.isnan(null_pcc_draws).any(0))
    q_value = np.full(len(pcc), np.nan)
    if tested.any():
        draws = null_pcc_draws[:, tested]
        floor = float(np.median(draws.std(0, ddof=1)))
        chance = np.sort(np.concatenate(
            [_statistic(draws[i], np.delete(draws, i, 0), floor) for i in range(len(draws))]
        ))  # fmt: skip
        d = _statistic(pcc[tested], draws, floor)
        exceeding = len(chance) - np.searchsorted(chance, d, side="left")
        q_value[tested] = _q_values((1 + exceeding) / (1 + len(chance)))
    predicted = q_value <= q  # NaN is not
    return Discovery(int(predicted.sum()), int(tested.sum()), predicted, q_value)


def _statistic(r: Float64Array, draws: Float64Array, floor: float) -> Float64Array:
    """``(r − m) / (s + s₀)`` of each gene; 0 where all are equal."""
    above, width = r - draws.mean(0), draws.std(0, ddof=1) + floor
    return np.divide(above, width, out=np.zeros_like(above), where=width > 0)


def _q_values(p: Float64Array) -> Float64Array:
    """Benjamini & Hochberg's adjusted p-values."""
    order = np.argsort(p)[::-1]
    adjusted = p[order] * len(p) / np.arange(len(p), 0, -1)
    q_value = np.empty_like(p)
    q_value[order] = np.minimum(np.minimum.accumulate(adjusted), 1.0)
    return q_value


@dataclass(frozen=True)
class AbundanceGroups:
    """A score in ten groups of genes, from the least to the most abundant.

    Attributes:
        abundance: (10,) float64, median abundance of the group's genes.
        n_genes: (10,) int64, genes of the group whose score is defined.
        mean, median: (10,) float64, of the score over these genes; NaN without any.
    """

    abundance: Float64Array
    n_genes: Int64Array
    mean: Float64Array
    median: Float64Array


def by_decile(values: Float64Array, abundance: Float64Array) -> AbundanceGroups:
    """Mean and median of a score in ten groups of equally many genes by abundance.

    Args:
        values: (G,) a score of each gene; NaN where undefined.
        abundance: (G,) mean UMIs per bin of each gene; genes without any are in no group.

    Raises:
        ValueError: Shapes that do not match.

    Example:
        >>> abundance = np.arange(1.0, 21.0)
        >>> groups = by_decile(abundance / 20, abundance)
        >>> groups.n_genes.tolist(), groups.mean[[0, -1]].round(3).tolist()
        ([2, 2, 2, 2, 2, 2, 2, 2, 2, 2], [0.075, 0.975])
    """
    if values.shape != abundance.shape or values.ndim != 1:
        raise ValueError(
            f"values, abundance: expected one of each per gene; got {values.shape} and "
            f"{abundance.shape}"
        )
    there = np.flatnonzero(abundance > 0)
    order = there[np.argsort(abundance[there], kind="stable")]
    found = np.full((3, N_GROUPS), np.nan)
    n_genes = np.zeros(N_GROUPS, np.int64)
    for i, group in enumerate(np.array_split(order, N_GROUPS)):
        scores = values[group][~np.isnan(values[group])]
        n_genes[i] = len(scores)
        if len(group):
            found[0, i] = np.median(abundance[group])
        if len(scores):
            found[1:, i] = scores.mean(), np.median(scores)
    return AbundanceGroups(found[0], n_genes, found[1], found[2])

"""Poisson regression from tokens to counts, solved without gradient descent, to start a decoder.

Letters in shapes: n tokens, T tokens per side of a patch, D token channels, G genes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from virchow_st.kernels.factorise import expected_umis
from virchow_st.kernels.pooling import sum_pool
from virchow_st.run.split import Member
from virchow_st.training.dataset import PatchDataset
from virchow_st.training.statistics import TrainingStatistics
from virchow_st.types import PATCH_BINS, BoolArray, Float32Array, Float64Array, Int64Array

PENALTY = 0.2
"""L2 penalty on the weights, relative to the variance 1 of a standardised channel.

On two simulated cohorts and two real slides, the penalty that predicted a left-out patient best
was between 0.05 and 0.5.
"""
_N_STEPS = 12
_MOST_TOKENS = 16_384  # more do not improve the fit, and take minutes with 1,280 channels
_MOST_LOG_RATIO = 8.0  # bound of the log ratio of a rate to the gene's mean
_MOST_SD = 8.0  # standardised tokens are clipped to this, as in `TokenNorm`
_N_EM_STEPS = 30


@dataclass(frozen=True)
class TokenRegression:
    """A linear function of standardised tokens: ``output = tokens @ weights + intercept``.

    Attributes:
        weights: (D, G) float32.
        intercept: (G,) float32.
    """

    weights: Float32Array
    intercept: Float32Array


def regress_on_tokens(
    dataset: PatchDataset,
    members: Sequence[Member],
    statistics: TrainingStatistics,
    loss: str,
    seed: int,
    loadings: Float32Array | None = None,
) -> TokenRegression:
    """Fit a decoder's output as a linear function of its tokens, on the training patches.

    The decoder starts from this fit, so that its first epoch improves on a regression instead of
    on the gene means.

    Args:
        dataset: the run's patches.
        members: the training patches; no others are read.
        statistics: mean rates and token statistics of the training patches.
        loss: the decoder's loss. For ``poisson`` and ``nb``, a Poisson regression gives log-rates.
            For ``mse``, one Newton step from the mean, which is a ridge regression, gives z-scores
            at 2 µm.
        seed: seed of the random choice of tokens, if there are more than 16,384.
        loadings: (G, K) loadings of factors, if the decoder's output is the logarithm of K factors;
            ``loss`` is then ``poisson``. The regression predicts the expected UMIs of each factor,
            see `umis_of_factors`.
    """
    rng = np.random.default_rng(seed)
    each = math.ceil(_MOST_TOKENS / len(members))
    parts = [_of_patch(dataset, member, statistics, rng, each, loadings) for member in members]
    x, umis, n_bins = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    known = None
    if dataset.measured(members) is not None:
        stores = np.array([member.store for member in members])
        of_row = np.repeat(stores, [len(part[0]) for part in parts])
        known = _Known(of_row, _known(dataset.measured_SG, np.unique(stores), loadings))

    def fitted(rate: Float64Array, n_steps: int = _N_STEPS) -> tuple[Float64Array, Float64Array]:
        if known is None:
            return poisson_regression(x, umis, n_bins, rate, PENALTY, n_steps)
        weights, offset = np.zeros((x.shape[1], len(rate))), np.zeros(len(rate))
        for rows, columns in known.groups():
            weights[:, columns], offset[columns] = poisson_regression(
                x[rows], umis[rows][:, columns], n_bins[rows], rate[columns], PENALTY, n_steps
            )
        return weights, offset

    if loadings is not None:
        rate = np.maximum(umis.sum(0), 0.5) / max(n_bins.sum(), 1.0)
        if known is not None:
            rate = known.rates(umis, n_bins)
        weights, offset = fitted(rate)
        return TokenRegression(weights.astype("f4"), (np.log(rate) + offset).astype("f4"))
    if loss == "mse":
        weights, offset = fitted(statistics.rate, n_steps=1)
        to_z = statistics.rate / statistics.std[0]
        return TokenRegression((weights * to_z).astype("f4"), (offset * to_z).astype("f4"))
    weights, offset = fitted(statistics.rate)
    intercept = np.log(np.maximum(statistics.rate, 1e-8)) + offset
    return TokenRegression(weights.astype("f4"), intercept.astype("f4"))


@dataclass(frozen=True)
class _Known:
    """Which rows tell of which outputs, where stores measured different genes.

    Attributes:
        of_row: (n,) store of each row.
        of_store: (S, J) bool, whether a store's counts tell of an output; each has one at least.
    """

    of_row: Int64Array
    of_store: BoolArray

    def groups(self) -> Iterator[tuple[Int64Array, Int64Array]]:
        """Rows and outputs to fit together: outputs that the same stores tell of."""
        patterns, group = np.unique(self.of_store, axis=1, return_inverse=True)
        for i in range(patterns.shape[1]):
            rows = np.flatnonzero(patterns[self.of_row, i])
            yield rows, np.flatnonzero(group.reshape(-1) == i)

    def rates(self, umis: Float64Array, n_bins: Float64Array) -> Float64Array:
        """(J,) mean UMIs per bin over the rows that tell of each output."""
        known = self.of_store[self.of_row]
        n = np.maximum((n_bins[:, None] * known).sum(0), 1.0)
        return np.asarray(np.maximum((umis * known).sum(0), 0.5) / n)


def _known(
    measured_SG: BoolArray, training: Int64Array, loadings: Float32Array | None
) -> BoolArray:
    """Stores that tell of each gene, or of each factor, (S, J); only stores that train do.

    A store tells of a factor if it measured at least half as much of its genes as another.
    """
    trains = np.isin(np.arange(len(measured_SG)), training)[:, None]
    if loadings is None:
        return measured_SG & trains
    share = (measured_SG & trains).astype(np.float64) @ loadings
    return np.asarray(2 * share >= share.max(axis=0)) & trains


def _of_patch(
    dataset: PatchDataset,
    member: Member,
    statistics: TrainingStatistics,
    rng: np.random.Generator,
    most: int,
    loadings: Float32Array | None = None,
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Standardised tokens (n, D) of a patch, UMIs of genes or factors (n, G or K), exposure (n,).

    Tokens with less than half of their bins in tissue are left out; of the others, at most
    ``most`` are drawn at random.
    """
    patch, T = dataset.patch(member), dataset.token_shape[0]
    side = PATCH_BINS // T
    n_bins = sum_pool(patch.tissue_mask[None].astype(np.float32), side).ravel()
    chosen = np.flatnonzero(2 * n_bins >= side**2)
    if len(chosen) > most:
        chosen = np.sort(rng.choice(chosen, most, replace=False))
    x = patch.tokens.reshape(T * T, -1)[chosen].astype(np.float64)
    x = (x - statistics.token_mean) / np.maximum(statistics.token_std, 1e-6)
    counts = dataset.panel_counts(member)
    inside = patch.tissue_mask.ravel()[counts.position]
    row, col = np.divmod(counts.position[inside].astype(np.int64), PATCH_BINS)
    cell = counts.gene[inside].astype(np.int64) * T * T + row // side * T + col // side
    umis = np.bincount(cell, counts.count[inside], counts.n_genes * T * T)
    umis_nG = umis.reshape(counts.n_genes, T * T)[:, chosen].T.astype(np.float64)
    if loadings is not None:
        umis_nG = umis_of_factors(umis_nG, loadings, dataset.measured_SG[member.store])
    exposure = n_bins
    if dataset.cohort_exposure is not None:
        exposure = sum_pool(dataset.exposure(member)[None], side).ravel()
    return np.clip(x, -_MOST_SD, _MOST_SD), umis_nG, exposure[chosen].astype(np.float64)


def umis_of_factors(
    umis: Float64Array, loadings: Float32Array, measured: BoolArray | None = None
) -> Float64Array:
    """Expected UMIs of each factor in rows of counts, (n, K); a row's sum is that of its counts.

    Factors are fitted to each row by EM with the loadings held fixed; the last expectation is
    returned (Lee & Seung, NIPS 13, 2001, 556).

    Args:
        umis: (n, G) counts.
        loadings: (G, K), columns that sum to 1.
        measured: (G,) bool, genes that were measured. The UMIs are then those that all genes would
            have. All were measured by default.

    Example:
        >>> two_genes_each = np.array([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]], np.float32)
        >>> umis_of_factors(np.array([[3.0, 1.0, 2.0]]), two_genes_each).round(6)
        array([[4., 2.]])
    """
    if measured is not None and not measured.all():
        share = np.maximum(loadings[measured].sum(0, dtype=np.float64), 1e-6)
        part = umis_of_factors(umis[:, measured], (loadings[measured] / share).astype(np.float32))
        return part / share
    of_genes = np.maximum(loadings.astype(np.float64), 1e-12)
    row, gene = np.nonzero(umis)
    start = np.searchsorted(row, np.arange(len(umis) + 1)).astype(np.int64)
    factors = np.full((len(umis), of_genes.shape[1]), 1.0)
    out, log_sums = np.empty_like(factors), np.empty(len(umis))
    for _ in range(_N_EM_STEPS):
        expected_umis(
            start, gene.astype(np.int32), umis[row, gene], factors, of_genes, 0, len(umis), out,
            log_sums,
        )  # fmt: skip
        factors = np.maximum(out, 1e-12)
    return out


def poisson_regression(
    x: Float64Array,
    umis: Float64Array,
    n_bins: Float64Array,
    rate: Float64Array,
    penalty: float,
    n_steps: int = _N_STEPS,
) -> tuple[Float64Array, Float64Array]:
    """Penalised maximum likelihood fit of ``umis ~ Poisson(n_bins · rate · exp(x @ w + b))``.

    For each gene it minimises ``Σ(Λ - K·log Λ) / Σ(n_bins·rate) + penalty·Σw²/2``, where K are the
    UMIs and Λ their expectation, by Newton steps (McCullagh & Nelder 1989, § 2.5). The steps use
    the curvature at the mean rate, which is the same for all genes, so that only one matrix is
    inverted. The step of a gene is halved while it would increase the objective.

    Args:
        x: (n, D) standardised tokens.
        umis: (n, G) UMIs summed over the tissue bins of each token.
        n_bins: (n,) exposures: numbers of tissue bins, where each has an exposure of 1.
        rate: (G,) mean UMIs per bin of exposure 1, > 0.
        penalty: L2 penalty on the weights, > 0; the intercept is not penalised.
        n_steps: number of Newton steps.

    Returns:
        Weights (D, G) and intercept (G,) of the log ratio of a rate to ``rate``.

    Example:
        >>> x = np.array([[-1.0], [-1.0], [1.0], [1.0]])
        >>> umis = np.array([[10.0], [10.0], [30.0], [30.0]])  # of one gene, in 64 bins each
        >>> weights, intercept = poisson_regression(
        ...     x, umis, np.full(4, 64.0), rate=np.array([20 / 64]), penalty=1e-6
        ... )
        >>> np.round(np.exp(x @ weights + intercept)[:, 0] * 20, 2)
        array([10., 10., 30., 30.])
    """
    total = max(n_bins.sum(), 1.0)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    ridge = np.full(x.shape[1], penalty)
    ridge[-1] = 1e-9
    curvature = (x * n_bins[:, None]).T @ x / total + np.diag(ridge)
    inverse = np.linalg.inv(curvature)
    relative = umis / (total * rate)  # UMIs relative to the gene's expected total
    share = n_bins[:, None] / total

    def at(w: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Objective (G,), and expected UMIs relative to the gene's expected total (n, G)."""
        log_ratio = np.clip(x @ w, -_MOST_LOG_RATIO, _MOST_LOG_RATIO)
        expected = share * np.exp(log_ratio)
        fit = (expected - relative * log_ratio).sum(0)
        return fit + 0.5 * (ridge[:, None] * w**2).sum(0), expected

    w: Float64Array = np.zeros((x.shape[1], umis.shape[1]))
    objective, expected = at(w)
    size = np.ones(umis.shape[1])
    for _ in range(n_steps):
        direction = inverse @ (x.T @ (expected - relative) + ridge[:, None] * w)
        for _ in range(8):
            new_w = w - size * direction
            new_objective, new_expected = at(new_w)
            is_worse = new_objective > objective
            if not is_worse.any():
                break
            size = np.where(is_worse, size / 2, size)
        w = np.where(is_worse, w, new_w)
        objective = np.where(is_worse, objective, new_objective)
        expected = np.where(is_worse, expected, new_expected)
        size = np.minimum(1.5 * size, 1.0)
    return w[:-1], w[-1]

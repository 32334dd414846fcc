"""Poisson regression from tokens to counts in closed form: where a decoder's training begins.

Letters: n tokens, T tokens a side, D token channels, G genes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from virchow_st.kernels.factorise import expected_umis
from virchow_st.kernels.pooling import sum_pool
from virchow_st.run.split import Member
from virchow_st.training.dataset import PatchDataset
from virchow_st.training.statistics import TrainingStatistics
from virchow_st.types import PATCH_BINS, Float32Array, Float64Array

# Of a standardised channel's variance. Channels that another patient's stain shifts by a third of
# their spread cost as much; on two simulated cohorts and two real slides what follows best on a
# patient left out lay between 0.05 and 0.5.
PENALTY = 0.2
_N_STEPS = 12
_MOST_TOKENS = 16_384  # more change nothing and take minutes with 1,280 channels
_MOST_LOG_RATIO = 8.0  # of a rate to the gene's mean
_N_EM_STEPS = 30
_MOST_SD = 8.0  # as `TokenNorm` cuts them


@dataclass(frozen=True)
class TokenRegression:
    """A linear function of standardised tokens.

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
    """What a decoder's output is best at first, given tokens alone and linearly.

    Args:
        dataset: the run's patches.
        members: the training patches; no others are read.
        statistics: of those.
        loss: ``poisson`` or ``nb``: a Poisson regression gives log-rates. ``mse``: the first of its
            Newton steps, which is a ridge regression, gives z-scores at 2 µm.
        seed: which tokens, where there are more than `_MOST_TOKENS`.
        loadings: (G, K) of factors, if the decoder's output is the logarithm of K factors. The
            regression is then on the UMIs of each factor that the counts of a token let one
            expect, see `umis_of_factors`; ``loss`` is ``poisson``.
    """
    rng = np.random.default_rng(seed)
    each = math.ceil(_MOST_TOKENS / len(members))
    parts = [_of_patch(dataset, member, statistics, rng, each, loadings) for member in members]
    x, umis, n_bins = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if loadings is not None:
        rate = np.maximum(umis.sum(0), 0.5) / max(n_bins.sum(), 1.0)
        weights, offset = poisson_regression(x, umis, n_bins, rate, PENALTY)
        return TokenRegression(weights.astype("f4"), (np.log(rate) + offset).astype("f4"))
    if loss == "mse":
        weights, offset = poisson_regression(x, umis, n_bins, statistics.rate, PENALTY, n_steps=1)
        to_z = statistics.rate / statistics.std[0]
        return TokenRegression((weights * to_z).astype("f4"), (offset * to_z).astype("f4"))
    weights, offset = poisson_regression(x, umis, n_bins, statistics.rate, PENALTY)
    intercept = np.log(np.maximum(statistics.rate, 1e-8)) + offset
    return TokenRegression(weights.astype("f4"), intercept.astype("f4"))


def _of_patch(
    dataset: PatchDataset,
    member: Member,
    statistics: TrainingStatistics,
    rng: np.random.Generator,
    most: int,
    loadings: Float32Array | None,
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Standardised tokens (n, D), their UMIs of genes (n, G) or factors (n, K), tissue bins (n,).

    Of tokens at least half of whose bins are tissue, at most so many, drawn at random.
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
        umis_nG = umis_of_factors(umis_nG, loadings)
    return np.clip(x, -_MOST_SD, _MOST_SD), umis_nG, n_bins[chosen].astype(np.float64)


def umis_of_factors(umis: Float64Array, loadings: Float32Array) -> Float64Array:
    """Expected UMIs of each factor in rows of counts, (n, K); a row's sum is that of its counts.

    Factors are fitted to each row by EM with the loadings held fixed; the last expectation is
    returned (Lee & Seung, NIPS 13, 2001, 556).

    Args:
        umis: (n, G) counts.
        loadings: (G, K), columns that sum to 1.

    Example:
        >>> two_genes_each = np.array([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]], np.float32)
        >>> umis_of_factors(np.array([[3.0, 1.0, 2.0]]), two_genes_each).round(6)
        array([[4., 2.]])
    """
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
    """Penalised maximum likelihood of ``umis ~ Poisson(n_bins · rate · exp(x @ w + b))``.

    Minimises, for each gene, ``Σ(Λ - K·log Λ) / Σ(n_bins·rate) + penalty·Σw²/2`` by Newton steps
    with the curvature at the mean rate, which all genes share, so that one matrix is inverted; a
    step that would not go down is halved (McCullagh & Nelder 1989, § 2.5).

    Args:
        x: (n, D) standardised tokens.
        umis: (n, G) summed over a token's tissue bins.
        n_bins: (n,) how many those are.
        rate: (G,) > 0, UMIs per bin.
        penalty: > 0; the intercept has none.
        n_steps: Newton steps.

    Returns:
        Weights (D, G) and intercept (G,), to be added to ``log rate``.
    """
    total = max(n_bins.sum(), 1.0)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    ridge = np.full(x.shape[1], penalty)
    ridge[-1] = 1e-9
    curvature = (x * n_bins[:, None]).T @ x / total + np.diag(ridge)
    inverse = np.linalg.inv(curvature)
    relative = umis / (total * rate)  # of what the gene has in all
    share = n_bins[:, None] / total

    def at(w: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Objective (G,), and the rates' share of the total (n, G)."""
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

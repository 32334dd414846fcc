"""H&E as prior of the factors: a run of other patients gives each factor its fine structure.

The run's maps on this slide, its factors or the rates of its panel, are first combined into a map
of each factor of the slide, ``m_k = Σ_j A_kj f_j`` with A ≥ 0, by Poisson regression on the
factors that the counts alone give. So levels and programmes are this slide's own. EM with smoothing
then smooths the ratio of a factor's UMIs to ``m_k ** β_k`` in the place of the UMIs
(`virchow_st.denoise.smooth.Smoother.smoothed`). With β = 1 and a wide Gaussian the factor is the
prior, scaled to its UMIs; with β = 0 or a narrow Gaussian it is the counts alone. The weight β of
each factor and the Gaussian's width are those that predict held-out counts best.

Letters: n observed tissue bins, m bins that failed, K factors, J maps of the run, G genes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from virchow_st.denoise.ems import WIDTHS_UM, Guide, expect, fit_factors, log_likelihood
from virchow_st.denoise.smooth import Smoother
from virchow_st.runtime.devices import core_count
from virchow_st.training.rows import SparseRows
from virchow_st.types import Float32Array, Float64Array, Int64Array

WEIGHTS = (0.25, 0.5, 0.75, 1.0)
"""Weights β to choose from, beside 0."""
_MOST_BINS = 20_000  # bins of a part that its regression is fitted to
_REGRESSION_STEPS = 200
_LEAST = np.float32(1e-8)  # UMIs per bin


@dataclass(frozen=True, eq=False)
class Prior:
    """Maps that one run predicts on a slide, or several, each on a part of it.

    Attributes:
        maps: (n, J) float32 ≥ 0, in the observed tissue bins; 0 in columns that a part's run lacks.
        missing: (m, J) float32 ≥ 0, in the bins that failed.
        part: (n,) int64, the part of the slide that each observed bin lies in.
        missing_part: (m,) int64, that of each bin that failed.
        loadings: (P, G, J) float64, share of each gene in each map of a part; NaN for genes that
            the run does not predict.
        run: Name of the run.
    """

    maps: Float32Array
    missing: Float32Array
    part: Int64Array
    missing_part: Int64Array
    loadings: Float64Array
    run: str

    @classmethod
    def of_one(
        cls, maps: Float32Array, missing: Float32Array, loadings: Float64Array, run: str
    ) -> Prior:
        """Maps of one run on the whole slide; loadings (G, J)."""
        parts = np.zeros(len(maps), np.int64), np.zeros(len(missing), np.int64)
        return cls(maps, missing, *parts, loadings[None], run)

    def hiding(self, kept: Int64Array, left: Int64Array) -> Prior:
        """The prior of a slide on which some of the observed bins count as failed."""
        return replace(
            self,
            maps=self.maps[kept],
            missing=self.maps[left],
            part=self.part[kept],
            missing_part=self.part[left],
        )

    def combined(self, factors: Float32Array, seed: int) -> Float64Array:
        """Coefficients A (P, K, J) ≥ 0 with which the maps of a part resemble factors (n, K) most.

        Maximum likelihood of Poisson regression by EM (Lee & Seung, NIPS 13, 2001, 556), on up to
        20,000 bins of each part.
        """
        n_parts, n_maps = len(self.loadings), self.maps.shape[1]
        found = np.zeros((n_parts, factors.shape[1], n_maps))
        for p in range(n_parts):
            at = np.flatnonzero(self.part == p)
            if len(at) > _MOST_BINS:
                at = np.sort(np.random.default_rng(seed).choice(at, _MOST_BINS, replace=False))
            if len(at):
                found[p] = _regressed(self.maps[at], factors[at])
        return found

    def rate(self, gene: int) -> Float32Array:
        """Rate (n,) of a gene by the runs alone; NaN where a run does not predict it."""
        return _by_part(self.maps, self.part, self.loadings[:, gene])

    def guide(self, coefficients: Float64Array, beta: Float64Array) -> Guide:
        """The guide of each factor in the observed bins, see `guide_of`."""
        return guide_of(self.maps, self.part, coefficients, beta)

    def guide_missing(self, coefficients: Float64Array, beta: Float64Array) -> Guide:
        """The guide of each factor in the bins that failed."""
        return guide_of(self.missing, self.missing_part, coefficients, beta)


def _regressed(maps: Float32Array, factors: Float32Array) -> Float64Array:
    """Coefficients (K, J) of the maps (n, J) for the factors (n, K)."""
    x, target = np.maximum(maps.astype(np.float64), 1e-9), factors.astype(np.float64)
    total = x.sum(0)
    found = np.repeat(target.sum(0)[:, None] / total.sum(), x.shape[1], axis=1)
    for _ in range(_REGRESSION_STEPS):
        ratio = target / np.maximum(x @ found.T, 1e-12)
        found *= (ratio.T @ x) / total
    return found


def _by_part(maps: Float32Array, part: Int64Array, weights: Float64Array) -> Float32Array:
    """Maps (n, J) times the weights (P, J) of the part of each bin, (n,)."""
    of = weights.astype(np.float32)
    if len(of) == 1:
        return np.asarray(maps @ of[0])
    found = np.empty(len(maps), np.float32)
    for p in range(len(of)):
        at = part == p
        found[at] = maps[at] @ of[p]
    return found


@dataclass(frozen=True, eq=False)
class PriorWeights:
    """How much each factor follows the prior.

    Attributes:
        loadings: (G, K) of the factors that the weights were chosen for.
        beta: (K,) float64 from 0 to 1.
    """

    loadings: Float64Array
    beta: Float64Array

    def of(self, loadings: Float64Array) -> Float64Array:
        """The weights of other factors (G, K), each paired with the one that is most like it."""
        a, b = (x / np.linalg.norm(x, axis=0) for x in (loadings, self.loadings))
        rows, cols = linear_sum_assignment(-(a.T @ b))
        found = np.empty(len(rows))
        found[rows] = self.beta[cols]
        return found


def guide_of(
    maps: Float32Array, part: Int64Array, coefficients: Float64Array, beta: Float64Array
) -> Guide:
    """The guide of each factor, ``m_k ** β_k``, computed when it is asked for.

    Args:
        maps: (n, J) of the runs.
        part: (n,) part of each bin.
        coefficients: (P, K, J), see `Prior.combined`.
        beta: (K,).

    Example:
        >>> maps, part = np.array([[1.0], [4.0]], np.float32), np.array([0, 0])
        >>> guide = guide_of(maps, part, np.ones((1, 1, 1)), np.array([0.5]))
        >>> guide(0).tolist()
        [1.0, 2.0]
    """

    def guide(k: int) -> Float32Array:
        own = np.maximum(_by_part(maps, part, coefficients[:, k]), _LEAST)
        return np.asarray(own ** np.float32(beta[k]))

    return guide


@dataclass(frozen=True, eq=False)
class Guided:
    """What was chosen with a prior.

    Attributes:
        beta: (K,) weight of the prior in each factor; all 0 where it predicts nothing better.
        width_um: Final width of the Gaussian, µm.
        factors: (n, K) of the fitted counts.
        gain: Log-likelihood of the held-out counts above that without the prior.
    """

    beta: Float64Array
    width_um: float
    factors: Float32Array
    gain: float


def choose_weights(
    fitted: SparseRows,
    held_out: SparseRows,
    loadings: Float64Array,
    smoother: Smoother,
    prior: Prior,
    alone: Guided,
    seed: int,
) -> Guided:
    """Choose the weight of the prior in each factor, and the width, by held-out counts.

    The held-out UMIs are divided among the factors by the fit without prior. Given that, the
    log-likelihood is a sum over factors, and each takes the weight under which its own part is
    largest; a choice that raises the sum raises the log-likelihood of the counts by at least as
    much (Dempster, Laird & Rubin, J. R. Stat. Soc. B 39, 1977, 1). Of the fits without prior, with
    one weight for all factors and with a weight for each, the one that predicts best is taken.

    Args:
        fitted: Counts that the factors are fitted to.
        held_out: The other counts of the same bins.
        loadings: (G, K).
        smoother: Of the n bins.
        prior: The run's maps.
        alone: The best fit without prior, its gain 0.
        seed: Draws the bins of the regression.
    """
    K = loadings.shape[1]
    coefficients = prior.combined(alone.factors, seed)
    base = log_likelihood(held_out, alone.factors, loadings)
    parts = alone.factors.copy()
    with ThreadPoolExecutor(core_count()) as pool:
        expect(held_out, parts, loadings, pool)

    def of_factors(factors: Float32Array) -> Float64Array:
        own = np.array([float(parts[:, k] @ np.log(factors[:, k])) for k in range(K)])
        return own - held_out.exposure @ factors

    def fit(beta: Float64Array) -> Guided:
        best = Guided(beta, 0.0, alone.factors, -np.inf)

        def keep(width_um: float, factors: Float32Array) -> None:
            nonlocal best
            gain = log_likelihood(held_out, factors, loadings) - base
            if gain > best.gain:
                best = Guided(beta, width_um, factors.copy(), gain)

        guide = prior.guide(coefficients, beta)
        fit_factors(fitted, loadings, smoother, WIDTHS_UM, keep, guide=guide)
        return best

    best, values = alone, [of_factors(alone.factors)]
    for weight in WEIGHTS:
        tried = fit(np.full(K, weight))
        values.append(of_factors(tried.factors))
        best = max(best, tried, key=lambda one: one.gain)
    each: Int64Array = np.argmax(values, axis=0)
    beta = np.array([0.0, *WEIGHTS])[each]
    if (beta != best.beta).any():
        best = max(best, fit(beta), key=lambda one: one.gain)
    return best

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
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from virchow_st.denoise.ems import WIDTHS_UM, Guide, expect, fit_factors, log_likelihood
from virchow_st.denoise.smooth import Smoother
from virchow_st.runtime.devices import core_count
from virchow_st.training.rows import SparseRows
from virchow_st.types import Float32Array, Float64Array, Int64Array

WEIGHTS = (0.25, 0.5, 0.75, 1.0)
"""Weights β to choose from, beside 0."""
_MOST_BINS = 20_000  # bins that the regression is fitted to
_REGRESSION_STEPS = 200
_LEAST = np.float32(1e-8)  # UMIs per bin


@dataclass(frozen=True, eq=False)
class Prior:
    """Maps that a run predicts on a slide.

    Attributes:
        maps: (n, J) float32 ≥ 0, in the observed tissue bins.
        missing: (m, J) float32 ≥ 0, in the bins that failed.
        loadings: (G, J) float64, share of each gene in each map; NaN for genes that the run does
            not predict.
        run: Name of the run.
    """

    maps: Float32Array
    missing: Float32Array
    loadings: Float64Array
    run: str

    def combined(self, factors: Float32Array, seed: int) -> Float64Array:
        """Coefficients A (K, J) ≥ 0 with which the maps resemble factors (n, K) most.

        Maximum likelihood of Poisson regression by EM (Lee & Seung, NIPS 13, 2001, 556), on up to
        20,000 bins.
        """
        n = len(factors)
        at = np.arange(n)
        if n > _MOST_BINS:
            at = np.sort(np.random.default_rng(seed).choice(n, _MOST_BINS, replace=False))
        maps = np.maximum(self.maps[at].astype(np.float64), 1e-9)
        target, total = factors[at].astype(np.float64), maps.sum(0)
        found = np.repeat(target.sum(0)[:, None] / total.sum(), maps.shape[1], axis=1)
        for _ in range(_REGRESSION_STEPS):
            ratio = target / np.maximum(maps @ found.T, 1e-12)
            found *= (ratio.T @ maps) / total
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


def guide_of(maps: Float32Array, coefficients: Float64Array, beta: Float64Array) -> Guide:
    """The guide of each factor, ``m_k ** β_k``, computed when it is asked for.

    Args:
        maps: (n, J) of the run.
        coefficients: (K, J), see `Prior.combined`.
        beta: (K,).

    Example:
        >>> guide = guide_of(np.array([[1.0], [4.0]], np.float32), np.ones((1, 1)), np.array([0.5]))
        >>> guide(0).tolist()
        [1.0, 2.0]
    """

    def guide(k: int) -> Float32Array:
        own = np.maximum(maps @ coefficients[k].astype(np.float32), _LEAST)
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

        guide = guide_of(prior.maps, coefficients, beta)
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

"""Fits loadings and factors to all counts of a slide by a recipe, and fills the bins that failed.

Letters: n observed tissue bins, m bins that failed, G genes, K shared factors, J genes with a map
of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from virchow_st.denoise.alike import Surroundings, fit_alike
from virchow_st.denoise.ems import WIDTHS_UM, Guide, fit_factors
from virchow_st.denoise.own import OwnRatio, with_own
from virchow_st.denoise.prior import Prior, PriorWeights
from virchow_st.denoise.refine import Refinement
from virchow_st.denoise.refit import refit
from virchow_st.denoise.slide import SlideCounts
from virchow_st.denoise.smooth import Smoother
from virchow_st.denoise.sources import Sources, weights_alike, weights_gaussian
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.training.factorise import factorise
from virchow_st.types import Float32Array, Float64Array


@dataclass(frozen=True, eq=False)
class Rates:
    """Rates of all genes in all bins: the rate of gene g in bin i is ``Σ_k h_ik · W_gk``.

    Attributes:
        loadings: (G, K + J) float64 ≥ 0, of the shared factors and of the J genes' own maps.
        factors: (n, K + J) float32 ≥ 0, UMIs per 2 µm bin of exposure 1.
        filled: (m, K + J) float32, the same of the bins that failed.
        sources: What the rates by the shared factors rest on, where that was asked for.
    """

    loadings: Float64Array
    factors: Float32Array
    filled: Float32Array
    sources: Sources | None = None


@dataclass(frozen=True, eq=False)
class Recipe:
    """What was chosen by held-out counts.

    Attributes:
        n_factors: Number of shared factors K.
        width_um: Final standard deviation of the Gaussian, µm.
        held_out: Width in µm → log-likelihood of the held-out counts above that of the first
            width, per held-out UMI, without prior.
        own: The J genes that have a map of their own.
        weights: Of the prior; None without one, or where it predicts nothing better.
        prior_gain: Log-likelihood of the held-out counts above that without prior, per UMI.
        refinement: How the fit by the Gaussian was gone on with; its width is that without prior.
        seed: Of the factorisation.
    """

    n_factors: int
    width_um: float
    held_out: dict[float, float]
    own: tuple[OwnRatio, ...]
    weights: PriorWeights | None
    prior_gain: float
    refinement: Refinement
    seed: int


def fit_rates(
    slide: SlideCounts,
    recipe: Recipe,
    prior: Prior | None,
    progress: Progress = SILENT,
    with_sources: bool = False,
) -> Rates:
    """Fit loadings and factors to the counts of a slide by what was chosen.

    Args:
        slide: The counts.
        recipe: What was chosen.
        prior: Maps of the run that the recipe's weights are of; None for the counts alone.
        progress: Receives step counts.
        with_sources: Whether to compute what the rates rest on, too.
    """
    loadings = factorise(slide.at_16um(recipe.seed), recipe.n_factors, recipe.seed).loadings
    smoother, refinement = smoother_of(slide), recipe.refinement

    def fit(last_um: float, guide: Guide | None = None) -> Float32Array:
        widths = WIDTHS_UM[: WIDTHS_UM.index(last_um) + 1]

        def report(width_um: float, _: Float32Array) -> None:
            done = widths.index(width_um) + 1
            progress.step(done, len(widths), "widths fitted", f"{width_um:g} µm")

        return fit_factors(slide.rows, loadings, smoother, widths, report, guide=guide)

    factors = fit(refinement.width_um)
    if refinement.prior_umis is not None:
        loadings, factors = refit(
            slide.rows, factors, loadings, smoother, refinement.width_um, refinement.prior_umis
        )
    guide: Guide | None = None
    guides: _Guides | None = None
    beta, width_um, tolerance = np.zeros(recipe.n_factors), recipe.width_um, refinement.tolerance
    if prior is not None and recipe.weights is not None:
        coefficients = prior.combined(factors, recipe.seed)
        beta = recipe.weights.of(loadings)
        guides = _Guides(prior, coefficients, beta)
        guide = prior.guide(coefficients, beta)
        factors = fit(width_um, guide)
    last_beta, weights = beta, None
    if tolerance is not None:
        if guides is not None:
            last_beta = refinement.prior_share * beta
            guide = guides.prior.guide(guides.coefficients, last_beta)
        given = smoother, width_um, tolerance, guide
        if with_sources:
            weights = weights_alike(Surroundings.of(slide.rows, factors, *given), smoother)
        factors = fit_alike(slide.rows, factors, loadings, *given)
    elif with_sources:
        weights = weights_gaussian(smoother, width_um, guide, recipe.n_factors)
    rates = finished(slide, smoother, factors, loadings, recipe, guides)
    if weights is None:
        return rates
    filled = rates.filled[:, : recipe.n_factors]
    return replace(rates, sources=Sources.of(weights, factors, last_beta, filled, beta))


@dataclass(frozen=True, eq=False)
class _Guides:
    """The guides of the observed and of the other bins."""

    prior: Prior
    coefficients: Float64Array
    beta: Float64Array

    def __call__(self, k: int) -> tuple[Float32Array, Float32Array] | None:
        if k >= len(self.beta):
            return None
        given = self.coefficients, self.beta
        return self.prior.guide(*given)(k), self.prior.guide_missing(*given)(k)


def finished(
    slide: SlideCounts,
    smoother: Smoother,
    factors: Float32Array,
    loadings: Float64Array,
    recipe: Recipe,
    guides: _Guides | None = None,
) -> Rates:
    """The genes' own maps besides, and the bins that failed filled."""
    factors, loadings = with_own(slide.rows, factors, loadings, smoother, list(recipe.own))
    filled = np.zeros((len(slide.unseen), factors.shape[1]), np.float32)
    if len(slide.unseen):
        for k in range(factors.shape[1]):
            guide = None if guides is None else guides(k)
            filled[:, k] = smoother.filled(factors[:, k], recipe.width_um, slide.unseen, guide)
    return Rates(loadings, factors, filled)


def smoother_of(slide: SlideCounts) -> Smoother:
    """A smoother over the observed bins, with their exposure relative to each other."""
    exposure = slide.rows.exposure
    return Smoother(slide.place, slide.tissue.shape, exposure / exposure.mean())

"""The whole estimate: what is chosen by held-out counts, and then the fit to all counts.

Letters: n observed tissue bins, G genes, K factors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from virchow_st.denoise.ems import WIDTHS_UM, Guide, fit_factors, log_likelihood
from virchow_st.denoise.fit import Rates, Recipe, finished, fit_rates, smoother_of
from virchow_st.denoise.own import choose_own
from virchow_st.denoise.prior import Guided, Prior, PriorWeights, choose_weights
from virchow_st.denoise.refine import Parts, choose_refinement, choose_share
from virchow_st.denoise.slide import SlideCounts
from virchow_st.errors import ConfigError
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.training.choose_factors import choose_n_factors
from virchow_st.training.factorise import factorise
from virchow_st.training.rows import SparseRows
from virchow_st.types import Float32Array, Float64Array

N_FACTORS = (8, 16, 32, 64)
"""Numbers of factors to choose from."""
FITTED_SHARE = 0.8
"""Share of the UMIs to which candidates are fitted; the others are predicted."""


@dataclass(frozen=True, eq=False)
class Trial:
    """The fit by which the recipe was chosen.

    Attributes:
        rates: By the recipe, of the fitted counts.
        fitted: Counts that they were fitted to.
        held_out: The other counts of the same bins.
    """

    rates: Rates = field(repr=False)
    fitted: SparseRows = field(repr=False)
    held_out: SparseRows = field(repr=False)


@dataclass(frozen=True, eq=False)
class Estimate:
    """The rates of a slide, how they were found, and the fit by which that was chosen."""

    rates: Rates
    recipe: Recipe
    trial: Trial


def estimate(
    slide: SlideCounts,
    n_factors: int,
    seed: int,
    progress: Progress = SILENT,
    prior: Prior | None = None,
) -> Estimate:
    """Estimate the rates of a slide from its counts.

    The number of factors, the final width of the Gaussian, the refinement that follows
    (`virchow_st.denoise.refine`) and the weights of the prior are those that predict counts best
    that were held out: a fifth of the UMIs, drawn at random (binomial thinning). The loadings and
    factors that are compared are fitted to the other four fifths alone. Then all are fitted to all
    UMIs with what was chosen.

    Args:
        slide: The counts, or the part that is to be used.
        n_factors: Number of factors K; 0 to choose it by held-out counts.
        seed: Seed of the split, of the starts and of the 16 µm bins that are drawn.
        progress: Receives notes and step counts.
        prior: Maps of a run of other patients; None for the counts alone.

    Raises:
        ConfigError: Too few counts, or no 16 µm bin that is half tissue.
    """
    recipe, trial = _choose(slide, n_factors, seed, progress, prior)
    progress.note(_chosen(recipe))
    if prior is not None:
        progress.note(_told(recipe))
    return Estimate(fit_rates(slide, recipe, prior, progress, True), recipe, trial)


def _by_share(
    prior: Prior, coefficients: Float64Array, beta: Float64Array
) -> Callable[[float], Guide]:
    """The guide by a share of the prior's weights."""
    return lambda share: prior.guide(coefficients, share * beta)


def _choose(
    slide: SlideCounts, n_factors: int, seed: int, progress: Progress, prior: Prior | None
) -> tuple[Recipe, Trial]:
    """Choose the number of factors, unless it is given, the final width and the weights."""
    smoother = smoother_of(slide)
    fitted, held_out = slide.rows.thinned(FITTED_SHARE, np.random.default_rng(seed))
    n_umis = float(held_out.count.sum(dtype=np.float64))
    if not (n_umis and fitted.count.sum(dtype=np.float64)):
        raise ConfigError("counts: expected enough UMIs to hold out a fifth; got too few")
    coarse = slide.with_rows(fitted).at_16um(seed)
    if not n_factors:
        candidates = tuple(k for k in N_FACTORS if k <= coarse.n_genes) or (coarse.n_genes,)
        n_factors = choose_n_factors(coarse, candidates, seed).n_factors
    loadings = factorise(coarse, n_factors, seed).loadings
    scores: dict[float, float] = {}
    best = np.empty((0, n_factors), np.float32)

    def score(width_um: float, factors: Float32Array) -> None:
        nonlocal best
        scores[width_um] = log_likelihood(held_out, factors, loadings)
        if scores[width_um] == max(scores.values()):
            best = factors.copy()
        progress.step(len(scores), len(WIDTHS_UM), "widths compared", f"{width_um:g} µm")

    fit_factors(fitted, loadings, smoother, WIDTHS_UM, score)
    first = scores[WIDTHS_UM[0]]
    gains = {width: (value - first) / n_umis for width, value in scores.items()}
    width_um = max(gains, key=lambda width: gains[width])
    progress.note("fitting loadings again, and smoothing among bins that are alike")
    parts = Parts(fitted, held_out, smoother)
    refined = choose_refinement(parts, best, loadings, width_um)
    loadings, factors, refinement = refined.loadings, refined.factors, refined.refinement
    weights, prior_gain = None, 0.0
    if prior is not None:
        progress.note("weighing the prior by held-out counts")
        alone = Guided(np.zeros(n_factors), width_um, refined.gaussian, 0.0)
        guided = choose_weights(fitted, held_out, loadings, smoother, prior, alone, seed)
        guide_of = _by_share(prior, prior.combined(refined.gaussian, seed), guided.beta)
        without = replace(refinement, width_um=guided.width_um)
        with_prior, factors_with, likelihood = choose_share(
            parts, guided.factors, loadings, without, guide_of
        )
        if guided.beta.any() and likelihood > refined.log_likelihood:
            weights, factors = PriorWeights(loadings, guided.beta), factors_with
            refinement = replace(with_prior, width_um=width_um)  # the loadings are those without
            width_um = guided.width_um
            prior_gain = (likelihood - refined.log_likelihood) / n_umis
    own = choose_own(fitted, held_out, factors, loadings, smoother)
    recipe = Recipe(n_factors, width_um, gains, tuple(own), weights, prior_gain, refinement, seed)
    # The bins that failed play no part in what is chosen.
    observed = replace(slide, rows=fitted, unseen=slide.unseen[:0])
    rates = finished(observed, smoother, factors, loadings, recipe)
    return recipe, Trial(rates, fitted, held_out)


def _chosen(recipe: Recipe) -> str:
    refinement = recipe.refinement
    wider = "" if refinement.tolerance is None else ", then a wider one among bins that are alike"
    return (
        f"chosen by held-out counts: {recipe.n_factors} factors, loadings of "
        f"{16 if refinement.prior_umis is None else 2} µm, a Gaussian of {recipe.width_um:g} µm"
        f"{wider}, {len(recipe.own)} genes with maps of their own"
    )


def _told(recipe: Recipe) -> str:
    if recipe.weights is None:
        return "the prior predicts held-out counts no better, and has no weight"
    beta = recipe.weights.beta
    return (
        f"weight of the prior in the factors: {beta.mean():.2f} on average, {beta.min():g} to "
        f"{beta.max():g}; gain {recipe.prior_gain:.4f} per held-out UMI"
    )

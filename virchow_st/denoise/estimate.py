"""The whole estimate: loadings, the final width by held-out counts, and the factors.

Letters: n tissue bins, G genes, K factors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from virchow_st.denoise.ems import WIDTHS_UM, fit_factors, log_likelihood
from virchow_st.denoise.own import OwnRatio, choose_own, with_own
from virchow_st.denoise.slide import SlideCounts
from virchow_st.denoise.smooth import Smoother
from virchow_st.errors import ConfigError
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.training.choose_factors import choose_n_factors
from virchow_st.training.factorise import factorise
from virchow_st.types import Float32Array, Float64Array

N_FACTORS = (8, 16, 32, 64)
"""Numbers of factors to choose from."""
_FITTED_SHARE = 0.8


@dataclass(frozen=True, eq=False)
class Estimate:
    """Rates of all genes in all bins: the rate of gene g in bin i is ``Σ_k h_ik · W_gk``.

    Attributes:
        loadings: (G, K + J) float64 ≥ 0, of the shared factors and of the J genes' own maps.
        factors: (n, K + J) float32 ≥ 0, UMIs per 2 µm bin of exposure 1.
        n_factors: Number of shared factors K.
        width_um: Final standard deviation of the Gaussian, µm.
        held_out: Width in µm → log-likelihood of the held-out counts above that of the first
            width, per held-out UMI; the width is the one where this is largest.
        own: The J genes that have a map of their own.
    """

    loadings: Float64Array
    factors: Float32Array
    n_factors: int
    width_um: float
    held_out: dict[float, float]
    own: tuple[OwnRatio, ...]


def estimate(
    slide: SlideCounts, n_factors: int, seed: int, progress: Progress = SILENT
) -> Estimate:
    """Estimate the rates of a slide from its counts.

    The number of factors and the final width of the Gaussian are those that predict counts best
    that were held out: a fifth of the UMIs, drawn at random (binomial thinning). The loadings and
    factors that are compared are fitted to the other four fifths alone. Then all are fitted to
    all UMIs with what was chosen.

    Args:
        slide: The counts, or the part that is to be used.
        n_factors: Number of factors K; 0 to choose it by held-out counts.
        seed: Seed of the split, of the starts and of the 16 µm bins that are drawn.
        progress: Receives notes and step counts.

    Raises:
        ConfigError: Too few counts, or no 16 µm bin that is half tissue.
    """
    smoother = Smoother(slide.place, slide.tissue.shape)
    choice = _choose(slide, smoother, n_factors, seed, progress)
    n_factors, width_um = choice.n_factors, choice.width_um
    progress.note(
        f"chosen by held-out counts: {n_factors} factors, a Gaussian of {width_um:g} µm at the "
        f"end, {len(choice.own)} genes with maps of their own"
    )
    loadings = factorise(slide.at_16um(seed), n_factors, seed).loadings
    widths = WIDTHS_UM[: WIDTHS_UM.index(width_um) + 1]
    done: list[float] = []

    def report(width_um: float, _: Float32Array) -> None:
        done.append(width_um)
        progress.step(len(done), len(widths), "widths fitted", f"{width_um:g} µm")

    factors = fit_factors(slide.rows, loadings, smoother, widths, report)
    factors, loadings = with_own(slide.rows, factors, loadings, smoother, choice.own)
    return Estimate(loadings, factors, n_factors, width_um, choice.held_out, tuple(choice.own))


@dataclass(frozen=True)
class _Choice:
    """What was chosen by held-out counts, and the gain of each width."""

    n_factors: int
    width_um: float
    held_out: dict[float, float]
    own: list[OwnRatio]


def _choose(
    slide: SlideCounts, smoother: Smoother, n_factors: int, seed: int, progress: Progress
) -> _Choice:
    """Choose the number of factors, unless it is given, and the final width."""
    fitted, held_out = slide.rows.thinned(_FITTED_SHARE, np.random.default_rng(seed))
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
    own = choose_own(fitted, held_out, best, loadings, smoother)
    return _Choice(n_factors, max(gains, key=lambda width: gains[width]), gains, own)

"""What follows the fit by a Gaussian, chosen by held-out counts: new loadings, and a wider Gaussian
among the bins that are alike.

Letters: n tissue bins, G genes, K factors.
"""

from __future__ import annotations

from dataclasses import dataclass

from virchow_st.denoise.alike import TOLERANCES, can_widen, fit_alike
from virchow_st.denoise.ems import Guide, log_likelihood
from virchow_st.denoise.refit import refit
from virchow_st.denoise.smooth import Smoother
from virchow_st.training.rows import SparseRows
from virchow_st.types import Float32Array, Float64Array

PRIOR_UMIS = (300.0, 100.0)
"""UMIs of a gene as which its loadings at 16 µm may count; see `virchow_st.denoise.refit`."""


@dataclass(frozen=True)
class Refinement:
    """What was chosen.

    Attributes:
        width_um: Standard deviation of the Gaussian at which the loadings were fitted again, µm.
        prior_umis: Of `virchow_st.denoise.refit.refit`; None for the loadings at 16 µm.
        tolerance: Of `virchow_st.denoise.alike.fit_alike`; None for the Gaussian alone.
    """

    width_um: float
    prior_umis: float | None
    tolerance: float | None


@dataclass(frozen=True, eq=False)
class Refined:
    """The fit by a refinement.

    Attributes:
        refinement: What was chosen.
        loadings: (G, K).
        gaussian: (n, K) factors of these loadings by the Gaussian alone.
        factors: (n, K) by the whole refinement.
        log_likelihood: Of the held-out counts.
    """

    refinement: Refinement
    loadings: Float64Array
    gaussian: Float32Array
    factors: Float32Array
    log_likelihood: float


def choose_refinement(
    fitted: SparseRows,
    held_out: SparseRows,
    factors: Float32Array,
    loadings: Float64Array,
    smoother: Smoother,
    width_um: float,
) -> Refined:
    """Choose loadings and tolerance by held-out counts, from the fit by the Gaussian of a width.

    The loadings are chosen with the usual tolerance, and then the tolerance.
    """
    usual = TOLERANCES[0] if can_widen(width_um) else None
    best: Refined | None = None
    for prior_umis in (None, *PRIOR_UMIS):
        new, gaussian = loadings, factors
        if prior_umis is not None:
            new, gaussian = refit(fitted, factors, loadings, smoother, width_um, prior_umis)
        found, likelihood = _tried(fitted, held_out, gaussian, new, smoother, width_um, usual)
        if best is None or likelihood > best.log_likelihood:
            which = Refinement(width_um, prior_umis, usual)
            best = Refined(which, new, gaussian, found, likelihood)
    assert best is not None
    tolerance, found, likelihood = choose_tolerance(
        fitted, held_out, best.gaussian, best.loadings, smoother, width_um,
        tried={usual: (best.factors, best.log_likelihood)},
    )  # fmt: skip
    which = Refinement(width_um, best.refinement.prior_umis, tolerance)
    return Refined(which, best.loadings, best.gaussian, found, likelihood)


def choose_tolerance(
    fitted: SparseRows,
    held_out: SparseRows,
    factors: Float32Array,
    loadings: Float64Array,
    smoother: Smoother,
    width_um: float,
    guide: Guide | None = None,
    tried: dict[float | None, tuple[Float32Array, float]] | None = None,
) -> tuple[float | None, Float32Array, float]:
    """Choose the tolerance, or the Gaussian alone, from factors (n, K) of the Gaussian.

    Args:
        tried: Factors and log-likelihoods of tolerances that need not be fitted again.

    Returns:
        The tolerance, the factors (n, K) and the log-likelihood of the held-out counts.
    """
    best: tuple[float | None, Float32Array, float] | None = None
    for tolerance in (None, *(TOLERANCES if can_widen(width_um) else ())):
        found, likelihood = (tried or {}).get(tolerance) or _tried(
            fitted, held_out, factors, loadings, smoother, width_um, tolerance, guide
        )
        if best is None or likelihood > best[2]:
            best = tolerance, found, likelihood
    assert best is not None
    return best


def _tried(
    fitted: SparseRows,
    held_out: SparseRows,
    factors: Float32Array,
    loadings: Float64Array,
    smoother: Smoother,
    width_um: float,
    tolerance: float | None,
    guide: Guide | None = None,
) -> tuple[Float32Array, float]:
    if tolerance is not None:
        factors = fit_alike(fitted, factors, loadings, smoother, width_um, tolerance, guide)
    return factors, log_likelihood(held_out, factors, loadings)

"""What follows the fit by a Gaussian, chosen by held-out counts: new loadings, and a wider Gaussian
among the bins that are alike.

Letters: n tissue bins, G genes, K factors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from virchow_st.denoise.alike import TOLERANCES, can_widen, fit_alike
from virchow_st.denoise.ems import Guide, log_likelihood
from virchow_st.denoise.refit import refit
from virchow_st.denoise.smooth import Smoother
from virchow_st.training.rows import SparseRows
from virchow_st.types import Float32Array, Float64Array

PRIOR_UMIS = (300.0, 100.0)
"""UMIs of a gene as which its loadings at 16 µm may count; see `virchow_st.denoise.refit`."""
PRIOR_SHARES = (0.5, 1.0, 0.0)
"""Shares of the prior's weights to choose from."""


@dataclass(frozen=True, eq=False)
class Parts:
    """Two parts of a slide's counts, one to fit to and one to choose by.

    Attributes:
        fitted: Counts of the n tissue bins that are fitted to.
        held_out: The other counts of the same bins.
        smoother: Of the n bins.
    """

    fitted: SparseRows
    held_out: SparseRows
    smoother: Smoother

    def tried(
        self,
        factors: Float32Array,
        loadings: Float64Array,
        width_um: float,
        tolerance: float | None,
        guide: Guide | None = None,
    ) -> tuple[Float32Array, float]:
        """Factors (n, K) by a tolerance, and the log-likelihood of the held-out counts."""
        if tolerance is not None:
            factors = fit_alike(
                self.fitted, factors, loadings, self.smoother, width_um, tolerance, guide
            )
        return factors, log_likelihood(self.held_out, factors, loadings)


@dataclass(frozen=True)
class Refinement:
    """What was chosen.

    Attributes:
        width_um: Standard deviation of the Gaussian at which the loadings were fitted again, µm.
        prior_umis: Of `virchow_st.denoise.refit.refit`; None for the loadings at 16 µm.
        tolerance: Of `virchow_st.denoise.alike.fit_alike`; None for the Gaussian alone.
        prior_share: Share of the prior's weights with which it guides that fit. A wider Gaussian
            takes more from the prior, so that all of its weight is often too much.
    """

    width_um: float
    prior_umis: float | None
    tolerance: float | None
    prior_share: float = 0.0


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
    parts: Parts, factors: Float32Array, loadings: Float64Array, width_um: float
) -> Refined:
    """Choose loadings and tolerance by held-out counts, from the fit by the Gaussian of a width.

    The loadings are chosen with the usual tolerance, and then the tolerance.
    """
    usual = TOLERANCES[0] if can_widen(width_um) else None
    best: Refined | None = None
    for prior_umis in (None, *PRIOR_UMIS):
        new, gaussian = loadings, factors
        if prior_umis is not None:
            given = parts.fitted, factors, loadings, parts.smoother
            new, gaussian = refit(*given, width_um, prior_umis)
        found, likelihood = parts.tried(gaussian, new, width_um, usual)
        if best is None or likelihood > best.log_likelihood:
            which = Refinement(width_um, prior_umis, usual)
            best = Refined(which, new, gaussian, found, likelihood)
    assert best is not None
    tried: dict[float | None, tuple[Float32Array, float]] = {
        usual: (best.factors, best.log_likelihood)
    }
    tolerance, found, likelihood = choose_tolerance(
        parts, best.gaussian, best.loadings, width_um, tried=tried
    )
    which = Refinement(width_um, best.refinement.prior_umis, tolerance)
    return Refined(which, best.loadings, best.gaussian, found, likelihood)


def choose_tolerance(
    parts: Parts,
    factors: Float32Array,
    loadings: Float64Array,
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
        found, likelihood = (tried or {}).get(tolerance) or parts.tried(
            factors, loadings, width_um, tolerance, guide
        )
        if best is None or likelihood > best[2]:
            best = tolerance, found, likelihood
    assert best is not None
    return best


def choose_share(
    parts: Parts,
    factors: Float32Array,
    loadings: Float64Array,
    refinement: Refinement,
    guide_of: Callable[[float], Guide],
) -> tuple[Refinement, Float32Array, float]:
    """Choose the share of a prior's weights, and then the tolerance, from factors that it guided.

    Args:
        refinement: That without the prior, with the width of the guided factors.
        guide_of: Guide by a share of the prior's weights.

    Returns:
        The refinement, the factors (n, K) and the log-likelihood of the held-out counts.
    """
    width_um, share = refinement.width_um, 0.0
    tried: dict[float | None, tuple[Float32Array, float]] = {}
    if can_widen(width_um):
        usual = TOLERANCES[0]
        for candidate in PRIOR_SHARES:
            found = parts.tried(factors, loadings, width_um, usual, guide_of(candidate))
            if usual not in tried or found[1] > tried[usual][1]:
                share, tried[usual] = candidate, found
    tolerance, chosen, likelihood = choose_tolerance(
        parts, factors, loadings, width_um, guide_of(share), tried
    )
    which = replace(refinement, tolerance=tolerance, prior_share=share)
    return which, chosen, likelihood

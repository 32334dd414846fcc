"""Chooses the number of factors by the likelihood of held-out counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from virchow_st.training.factorise import factorise
from virchow_st.training.rows import MOST_ROWS, SparseRows
from virchow_st.types import Float64Array

TOLERANCE = 0.02
"""Share of the best gain that a smaller number of factors may lack."""
_FITTED_SHARE = 0.8
_PIECE = 1 << 18  # counts whose rates are computed at once


@dataclass(frozen=True)
class FactorChoice:
    """The number of factors, and the gains by which it was chosen.

    Attributes:
        n_factors: The smallest candidate whose gain is within `TOLERANCE` of the best.
        candidates: The candidates, in rising order.
        gains: (len(candidates),) float64, log-likelihood of the held-out counts above that of a
            single factor, per held-out UMI; NaN where not tried.
    """

    n_factors: int
    candidates: tuple[int, ...]
    gains: Float64Array


def choose_n_factors(
    counts: SparseRows, candidates: Sequence[int] = (8, 16, 32, 64), seed: int = 0
) -> FactorChoice:
    """Choose the number of factors that predicts held-out counts about as well as the best.

    Every count is split at random into a part of about 80 %, to which each candidate is fitted, and
    a part that is held out. The held-out counts are scored by their Poisson log-likelihood at the
    fitted rates. Candidates are tried in rising order, up to the first that is worse than the best
    by more than `TOLERANCE`.

    Args:
        counts: Rows of counts; of more than 16,384, that many are drawn.
        candidates: Numbers of factors to compare.
        seed: Seed of the split, of the rows and of the fits.

    Raises:
        ValueError: No candidate, or counts too few to be split.

    Example:
        Three programmes; more factors only fit noise:

        >>> rng = np.random.default_rng(0)
        >>> programmes = rng.dirichlet(np.full(40, 0.2), 3)
        >>> mean = 64 * rng.gamma(0.3, 1.0, (400, 3)) @ programmes
        >>> rows = SparseRows.from_dense(rng.poisson(mean), exposure=np.full(400, 64.0))
        >>> choose_n_factors(rows, candidates=(1, 3, 9)).n_factors
        3
    """
    candidates = tuple(sorted(candidates))
    if not candidates:
        raise ValueError("candidates: expected at least one number of factors; got none")
    rng = np.random.default_rng(seed)
    if len(counts) > MOST_ROWS:
        counts = counts.taken(np.sort(rng.choice(len(counts), MOST_ROWS, replace=False)))
    fitted, held_out = counts.thinned(_FITTED_SHARE, rng)
    n_umis = held_out.count.sum(dtype=np.float64)
    if not (n_umis > 0 and fitted.count.sum() > 0):
        raise ValueError("counts: expected enough UMIs to hold out a fifth; got too few")
    mean = fitted.gene_shares
    depth = np.maximum(fitted.totals, 0.5) / fitted.exposure
    if fitted.coverage is not None:
        depth = depth / fitted.shares(mean[:, None])[:, 0]
    single = _log_likelihood(held_out, depth[:, None], mean[:, None])
    gains = np.full(len(candidates), np.nan)
    for i, n_factors in enumerate(candidates):
        found = factorise(fitted, n_factors, seed)
        log_likelihood = _log_likelihood(held_out, found.factors, found.loadings)
        gains[i] = (log_likelihood - single) / n_umis
        enough = gains >= np.nanmax(gains) * (1 - TOLERANCE * np.sign(np.nanmax(gains)))
        if not enough[i]:
            break
    return FactorChoice(candidates[int(np.argmax(enough))], candidates, gains)


def _log_likelihood(counts: SparseRows, factors: Float64Array, loadings: Float64Array) -> float:
    """Poisson log-likelihood of counts at the rates of a factorisation, without Σ ln x!."""
    exposed, share = counts.exposure[:, None] * factors, counts.shares(loadings)
    total = (exposed.sum(0) * share[0]).sum() if len(share) == 1 else (exposed * share).sum()
    log_sum, row = 0.0, counts.row
    for at in range(0, len(row), _PIECE):
        piece = slice(at, at + _PIECE)
        rate = (factors[row[piece]] * loadings[counts.gene[piece]]).sum(1)
        log_sum += float(counts.count[piece] @ np.log(rate * counts.exposure[row[piece]]))
    return log_sum - float(total)

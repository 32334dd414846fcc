"""Rank figures of rounded rates and counts: Spearman's ρ, and the detection of a UMI."""

from __future__ import annotations

import numpy as np

from virchow_st.kernels.joint import JointHistogram
from virchow_st.types import Array, Float64Array, Int64Array

SPEARMAN, AUROC, AUPRC, PREVALENCE = range(4)
"""Columns of `rank_figures`."""


def rank_figures(pairs: JointHistogram, n_genes: int) -> Float64Array:
    """Rank figures of every gene, (G, 4) float64: Spearman's ρ, AUROC, AUPRC and prevalence.

    Equal values share the mean of their ranks. See `spearman` and `detection` for what is undefined
    (NaN). The rounding is that of `kernels.joint`.
    """
    out = np.empty((n_genes, 4))
    for g in range(n_genes):
        keys, classes, times = pairs.cells(g)
        out[g, SPEARMAN] = spearman(keys, classes, times)
        out[g, AUROC:] = detection(keys, classes > 0, times)
    return out


def spearman(x: Int64Array, y: Int64Array, times: Int64Array) -> float:
    """Spearman's ρ: Pearson's r of the ranks of x and y (n,), each pair taken ``times`` over.

    Spearman, Am. J. Psychol. 15 (1904) 72. NaN where y does not vary; 0 where y does and x does
    not.
    """
    rx, ry = _centred_ranks(x, times), _centred_ranks(y, times)
    vx, vy = (times * rx * rx).sum(), (times * ry * ry).sum()
    if vy == 0:
        return float("nan")
    return float((times * rx * ry).sum() / np.sqrt(vx) / np.sqrt(vy)) if vx > 0 else 0.0


def detection(x: Int64Array, present: Array, times: Int64Array) -> tuple[float, float, float]:
    """How well x tells the bins where something is ``present`` from those where nothing is.

    Args:
        x: (n,) scores, larger for bins held more likely to have it.
        present: (n,) bool.
        times: (n,) how often each pair of the two occurs.

    Returns:
        AUROC, the chance that a bin with has a larger x than a bin without, ties counting half
        (Hanley & McNeil, Radiology 143 (1982) 29); AUPRC, the average precision
        Σ (Rᵢ − Rᵢ₋₁) Pᵢ over the thresholds in falling order; and the share of bins with. All NaN
        where every bin has it or none: there is nothing to tell apart.
    """
    levels, at = np.unique(x, return_inverse=True)
    with_it = np.bincount(at, times * present, levels.size)[::-1]
    without = np.bincount(at, times * ~present, levels.size)[::-1]
    n_with, n_without = with_it.sum(), without.sum()
    if n_with == 0 or n_without == 0:
        return float("nan"), float("nan"), float("nan")
    found, false_alarms = np.cumsum(with_it), np.cumsum(without)
    auroc = (with_it * (n_without - false_alarms + without / 2)).sum() / n_with / n_without
    auprc = (with_it * found / (found + false_alarms)).sum() / n_with
    return float(auroc), float(auprc), float(n_with / (n_with + n_without))


def _centred_ranks(values: Int64Array, times: Int64Array) -> Float64Array:
    """Ranks of the values (n,), less the mean rank; equal values share the mean of theirs."""
    levels, at = np.unique(values, return_inverse=True)
    held = np.bincount(at, times, levels.size)
    last = np.cumsum(held)
    middle = last - held / 2  # half a rank off, as the mean rank below is
    n = last[-1] if levels.size else 0.0
    ranks: Float64Array = (middle - n / 2)[at]
    return ranks

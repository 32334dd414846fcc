"""Rank scores of rounded rates and counts: Spearman's ρ, and detection of bins with a UMI."""

from __future__ import annotations

import numpy as np

from virchow_st.kernels.joint import JointHistogram
from virchow_st.types import Array, Float64Array, Int64Array

SPEARMAN, AUROC, AUPRC, PREVALENCE = range(4)
"""Columns of the result of `rank_scores`."""


def rank_scores(pairs: JointHistogram, n_genes: int) -> Float64Array:
    """Compute the rank scores of every gene from its joint histogram.

    Equal values get the mean of their ranks. Rates and counts are rounded as in `kernels.joint`.

    Args:
        pairs: Joint histogram of predicted rates and observed counts.
        n_genes: Number of genes G.

    Returns:
        (G, 4) float64: Spearman's ρ, AUROC, AUPRC and prevalence; NaN where undefined, see
        `spearman` and `detection`.

    Example:
        >>> pairs = JointHistogram(1)
        >>> rate, counts = np.array([[0.1, 0.2, 0.3, 0.4]]), np.array([[0, 0, 2, 1]])
        >>> pairs.update(rate, counts, np.ones(4, bool))
        >>> rank_scores(pairs, 1).round(3)
        array([[0.738, 1.   , 1.   , 0.5  ]])
    """
    out = np.empty((n_genes, 4))
    for g in range(n_genes):
        keys, classes, times = pairs.cells(g)
        out[g, SPEARMAN] = spearman(keys, classes, times)
        out[g, AUROC:] = detection(keys, classes > 0, times)
    return out


def spearman(x: Int64Array, y: Int64Array, times: Int64Array) -> float:
    """Spearman's ρ: Pearson's r of the ranks of x and y.

    Spearman, Am. J. Psychol. 15 (1904) 72.

    Args:
        x, y: (n,) int64 predicted and observed values; only their order matters.
        times: (n,) int64 number of times that each pair occurs.

    Returns:
        ρ in [−1, 1]; NaN if y does not vary; 0 if y varies and x does not.

    Example:
        >>> x, y, once = np.array([1, 2, 3, 4]), np.array([0, 0, 2, 1]), np.ones(4, int)
        >>> round(spearman(x, y, once), 3)
        0.738
    """
    rx, ry = _centred_ranks(x, times), _centred_ranks(y, times)
    vx, vy = (times * rx * rx).sum(), (times * ry * ry).sum()
    if vy == 0:
        return float("nan")
    return float((times * rx * ry).sum() / np.sqrt(vx) / np.sqrt(vy)) if vx > 0 else 0.0


def detection(x: Int64Array, present: Array, times: Int64Array) -> tuple[float, float, float]:
    """How well x separates the bins with a UMI from the bins without.

    Args:
        x: (n,) predicted value, larger for bins that are more likely to have a UMI.
        present: (n,) bool, whether the bin has a UMI.
        times: (n,) number of times that each pair of the two occurs.

    Returns:
        AUROC, the probability that a bin with a UMI has a larger x than a bin without, ties
        counting half (Hanley & McNeil, Radiology 143 (1982) 29); AUPRC, the average precision
        Σ (Rᵢ − Rᵢ₋₁) Pᵢ over decreasing thresholds; and the prevalence, the share of bins with a
        UMI. All three are NaN if all bins or no bins have a UMI.

    Example:
        >>> x, present = np.array([1, 2, 3, 4]), np.array([False, True, False, True])
        >>> auroc, auprc, prevalence = detection(x, present, np.ones(4, int))
        >>> round(auroc, 3), round(auprc, 3), prevalence
        (0.75, 0.833, 0.5)
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
    """Ranks of the values (n,) minus the mean rank; equal values get the mean of their ranks."""
    levels, at = np.unique(values, return_inverse=True)
    held = np.bincount(at, times, levels.size)
    last = np.cumsum(held)
    middle = last - held / 2  # offset by half a rank, as is the mean rank n / 2 below
    n = last[-1] if levels.size else 0.0
    ranks: Float64Array = (middle - n / 2)[at]
    return ranks

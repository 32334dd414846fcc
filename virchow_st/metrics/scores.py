"""Scores of one scale per gene, and their averages over genes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from virchow_st.metrics import correlation
from virchow_st.types import BoolArray, Float64Array


@dataclass(frozen=True)
class ScaleScores:
    """Scores of one scale. Arrays are (G,) float64, one value per gene, NaN where undefined.

    docs/metrics.md defines each score. A gene is *scored* if its counts vary over the scored bins;
    only scored genes enter an average.
    """

    scale_um: int
    n_bins: int
    """Number of scored bins of side ``scale_um``: those whose 2 µm bins are all tissue."""
    n_windows: int
    """Number of SSIM windows per gene that lie entirely in tissue."""
    mean: Float64Array
    """Mean observed UMIs per scored bin."""
    nonzero: Float64Array
    """Share of scored bins with at least one UMI."""
    pcc: Float64Array
    """Pearson's r of predicted rate and observed counts over bins."""
    pcc_ceiling: Float64Array
    """Pearson's r that the true rates would reach, from mean and variance of the counts."""
    pcc_ceiling_thinned: Float64Array
    """The same ceiling, from two random halves of the counts."""
    pcc_shuffled: Float64Array
    """``pcc`` with the prediction of another patch."""
    pcc_shifted: Float64Array
    """``pcc`` with the prediction of the whole slide shifted."""
    pcc_partial: Float64Array
    """``pcc`` given total UMIs of other genes and nuclear density."""
    pcc_partial_ceiling: Float64Array
    """``pcc_partial`` that the true rates would reach."""
    pcc_partial_shuffled: Float64Array
    """``pcc_partial`` with the prediction of another patch."""
    spearman: Float64Array
    """Spearman's ρ of rounded rates and counts."""
    ssim: Float64Array
    """Mean SSIM over windows of 7 × 7 bins."""
    ssim_shuffled: Float64Array
    """``ssim`` with the prediction of another patch."""
    ssim_shifted: Float64Array
    """``ssim`` with the prediction of the whole slide shifted."""
    ssim_all_zero: Float64Array
    """``ssim`` of a prediction of 0 everywhere."""
    d2_poisson: Float64Array
    """Share of the Poisson deviance of the training mean that the prediction explains."""
    d2_poisson_test_mean: Float64Array
    """The same relative to the mean of the test slide."""
    auprc: Float64Array
    """Average precision of the rate for detecting bins with a UMI."""
    auprc_prevalence: Float64Array
    """Share of bins with a UMI, the ``auprc`` of chance."""
    auroc: Float64Array
    """Area under the ROC curve of the rate for detecting bins with a UMI."""
    calibration: Float64Array
    """Predicted over observed total UMIs."""
    morans_i_predicted: Float64Array
    """Moran's I of the predicted rates."""
    morans_i_observed: Float64Array
    """Moran's I of the counts."""
    morans_i_residual: Float64Array
    """Moran's I of counts minus rates."""
    pcc_pooled: float
    """Pearson's r with the bins of all genes in one vector."""
    calibration_total: float
    """Predicted over observed UMIs, summed over all genes."""

    @property
    def scored(self) -> BoolArray:
        """(G,) bool, True for genes whose counts vary, so that a correlation is defined."""
        return ~np.isnan(self.pcc)

    def summary(self) -> dict[str, float | None]:
        """Averages over scored genes, as in one scale of ``metrics.json``; None where undefined.

        The share of tissue that was scored, ``coverage``, depends on the whole slide; the caller
        computes it from ``n_bins`` and adds it.
        """
        s = self.scored
        pcc, ceiling = self.pcc[s], _mean(self.pcc_ceiling[s])
        averages = {
            "n_genes_scored": float(s.sum()),
            "pcc": _mean(pcc),
            "pcc_fisher": correlation.fisher_mean(pcc),
            "pcc_median": float(np.median(pcc)) if pcc.size else float("nan"),
            "pcc_pooled": self.pcc_pooled,
            "pcc_ceiling": ceiling,
            "pcc_ceiling_thinned": _mean(self.pcc_ceiling_thinned[s]),
            "pcc_of_ceiling": _mean(pcc) / ceiling if ceiling > 0 else float("nan"),
            "pcc_shuffled": _mean(self.pcc_shuffled[s]),
            "pcc_shifted": _mean(self.pcc_shifted[s]),
            "pcc_partial": _mean(self.pcc_partial[s]),
            "pcc_partial_ceiling": _mean(self.pcc_partial_ceiling[s]),
            "pcc_partial_shuffled": _mean(self.pcc_partial_shuffled[s]),
            "spearman": _mean(self.spearman[s]),
            "ssim": _mean(self.ssim[s]),
            "ssim_shuffled": _mean(self.ssim_shuffled[s]),
            "ssim_shifted": _mean(self.ssim_shifted[s]),
            "ssim_all_zero": _mean(self.ssim_all_zero[s]),
            "d2_poisson": _mean(self.d2_poisson[s]),
            "d2_poisson_test_mean": _mean(self.d2_poisson_test_mean[s]),
            "auprc": _mean(self.auprc[s]),
            "auprc_prevalence": _mean(self.auprc_prevalence[s]),
            "auroc": _mean(self.auroc[s]),
            "calibration": self.calibration_total,
            "morans_i_predicted": _mean(self.morans_i_predicted[s]),
            "morans_i_observed": _mean(self.morans_i_observed[s]),
            "morans_i_residual": _mean(self.morans_i_residual[s]),
        }
        defined = {name: value if np.isfinite(value) else None for name, value in averages.items()}
        return {**defined, "n_genes_scored": int(s.sum())}


def _mean(values: Float64Array) -> float:
    """Mean of the defined values; NaN if there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")

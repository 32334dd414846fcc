"""The figures of one scale, a value a gene, and their averages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from virchow_st.metrics import correlation
from virchow_st.types import BoolArray, Float64Array


@dataclass(frozen=True)
class ScaleScores:
    """Figures of one scale. Arrays are (G,) float64, a value a gene; NaN where undefined.

    docs/metrics.md defines each. A gene is *scored* where its counts vary over the scored bins;
    only scored genes enter an average.
    """

    scale_um: int
    n_bins: int
    """Scored bins of side ``scale_um``: those whose 2 µm bins are all tissue."""
    n_windows: int
    """SSIM windows a gene, wholly in tissue."""
    mean: Float64Array
    """Mean observed UMIs per scored bin."""
    nonzero: Float64Array
    """Share of scored bins with at least one UMI."""
    pcc: Float64Array
    pcc_ceiling: Float64Array
    pcc_ceiling_thinned: Float64Array
    pcc_shuffled: Float64Array
    pcc_shifted: Float64Array
    spearman: Float64Array
    ssim: Float64Array
    ssim_shuffled: Float64Array
    ssim_shifted: Float64Array
    ssim_all_zero: Float64Array
    d2_poisson: Float64Array
    d2_poisson_test_mean: Float64Array
    auprc: Float64Array
    auprc_prevalence: Float64Array
    auroc: Float64Array
    calibration: Float64Array
    morans_i_predicted: Float64Array
    morans_i_observed: Float64Array
    morans_i_residual: Float64Array
    pcc_pooled: float
    calibration_total: float

    @property
    def scored(self) -> BoolArray:
        """(G,) bool: genes whose counts vary, so that a correlation is defined."""
        return ~np.isnan(self.pcc)

    def summary(self) -> dict[str, float | None]:
        """One scale of ``metrics.json``; None (JSON null) where a figure is undefined.

        The share of tissue that was scored, ``coverage``, needs the whole slide and is added by
        the caller from ``n_bins``.
        """
        s = self.scored
        pcc, ceiling = self.pcc[s], _mean(self.pcc_ceiling[s])
        figures = {
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
        defined = {name: value if np.isfinite(value) else None for name, value in figures.items()}
        return {**defined, "n_genes_scored": int(s.sum())}


def _mean(values: Float64Array) -> float:
    """Mean of the defined values; NaN where there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")

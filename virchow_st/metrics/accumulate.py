"""All figures of one scale in one pass over the patches of a test slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from virchow_st.kernels.pooling import pool_mask, sum_pool
from virchow_st.metrics import correlation
from virchow_st.metrics import counts as count_figures
from virchow_st.metrics.ceiling import noise_ceiling
from virchow_st.metrics.ssim import SsimMean
from virchow_st.types import BIN_UM, Array, BoolArray, Float32Array, Float64Array


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
    pcc_shuffled: Float64Array
    ssim: Float64Array
    ssim_shuffled: Float64Array
    ssim_all_zero: Float64Array
    d2_poisson: Float64Array
    calibration: Float64Array
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
        pcc, ceiling = self.pcc[s], self.pcc_ceiling[s]
        best = _mean(ceiling)
        figures = {
            "n_genes_scored": float(s.sum()),
            "pcc": _mean(pcc),
            "pcc_fisher": correlation.fisher_mean(pcc),
            "pcc_median": float(np.median(pcc)) if pcc.size else float("nan"),
            "pcc_pooled": self.pcc_pooled,
            "pcc_ceiling": best,
            "pcc_of_ceiling": _mean(pcc) / best if best > 0 else float("nan"),
            "pcc_shuffled": _mean(self.pcc_shuffled[s]),
            "ssim": _mean(self.ssim[s]),
            "ssim_shuffled": _mean(self.ssim_shuffled[s]),
            "ssim_all_zero": _mean(self.ssim_all_zero[s]),
            "d2_poisson": _mean(self.d2_poisson[s]),
            "calibration": self.calibration_total,
        }
        defined = {name: value if np.isfinite(value) else None for name, value in figures.items()}
        return {**defined, "n_genes_scored": int(s.sum())}


class ScaleAccumulator:
    """One pass over the patches of a test set at one scale; memory independent of their number.

    Only sums are kept, so the order of the patches changes nothing but rounding.
    """

    def __init__(self, n_genes: int, scale_um: int, train_rate: Float64Array) -> None:
        """Start with nothing scored.

        Args:
            n_genes: G.
            scale_um: side of the scored bins, a multiple of 2 µm.
            train_rate: (G,) mean UMIs per 2 µm tissue bin over the training patients: the model
                that ``d2_poisson`` measures against.

        Raises:
            ValueError: a scale that is no multiple of 2 µm, or rates that are not (G,), finite and
                at least 0.
        """
        if scale_um < BIN_UM or scale_um % BIN_UM:
            raise ValueError(f"scale_um: expected a multiple of {BIN_UM}; got {scale_um}")
        train_rate = np.asarray(train_rate, dtype=np.float64)
        if train_rate.shape != (n_genes,):
            raise ValueError(f"train_rate: expected shape ({n_genes},); got {train_rate.shape}")
        if not (np.isfinite(train_rate) & (train_rate >= 0)).all():
            raise ValueError("train_rate: expected finite rates of at least 0")
        self.n_genes, self.scale_um = n_genes, scale_um
        self._factor = scale_um // BIN_UM
        self._null_rate = train_rate * self._factor**2
        self._moments = np.zeros((n_genes, 6))
        self._shuffled_moments = np.zeros((n_genes, 6))
        self._poisson_sums = np.zeros((n_genes, 4))
        self._ssim = SsimMean(n_genes)
        self._ssim_shuffled = SsimMean(n_genes)
        self._ssim_all_zero = SsimMean(n_genes)

    def update(
        self,
        rate: Float32Array,
        counts: Array,
        tissue_mask: BoolArray,
        shuffled_rate: Float32Array | None,
    ) -> None:
        """Add a patch.

        Args:
            rate: (G, R, C) float32, expected UMIs per 2 µm bin; R and C, 128 in a whole patch, are
                multiples of the scale's bin. Negative rates are allowed.
            counts: (G, R, C) uint16 or float32, observed UMIs per 2 µm bin.
            tissue_mask: (R, C) bool, True = tissue. Nothing outside it is used.
            shuffled_rate: (G, R, C) float32, the prediction for another patch, which makes the null
                of a model that knows the tissue but not the place; None where there is no other.

        Raises:
            ValueError: shapes that do not fit, or a prediction that is NaN or infinite on a scored
                bin; the accumulator is then as it was.
        """
        shape = (self.n_genes, *tissue_mask.shape)
        named = {"rate": rate, "counts": counts, "shuffled_rate": shuffled_rate}
        for name, x in named.items():
            if x is not None and x.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}; got {x.shape}")

        mask = pool_mask(np.ascontiguousarray(tissue_mask, dtype=np.bool_), self._factor)
        k = self._pool(np.ascontiguousarray(counts))
        lam, moments = self._pool_rate("rate", rate, k, mask)
        if shuffled_rate is not None:
            other, other_moments = self._pool_rate("shuffled_rate", shuffled_rate, k, mask)
            self._shuffled_moments += other_moments
            self._ssim_shuffled.update(other, k, mask)
        self._moments += moments
        self._poisson_sums += count_figures.poisson_sums(lam, k, mask)
        self._ssim.update(lam, k, mask)
        self._ssim_all_zero.update(np.zeros(k.shape, lam.dtype), k, mask)

    def _pool(self, x: Array) -> Array:
        """Sums over the scale's bins, float64; at 2 µm the map itself, which spares a copy."""
        return x if self._factor == 1 else sum_pool(x, self._factor)

    def _pool_rate(
        self, name: str, rate: Float32Array, k: Array, mask: BoolArray
    ) -> tuple[Array, Float64Array]:
        """Rates summed to the scale (G, R', C') and their moments with the counts k (G, 6)."""
        lam = self._pool(np.ascontiguousarray(rate, dtype=np.float32))
        moments = correlation.moments(lam, k, mask)
        for what, column in ((name, correlation.SX), ("counts", correlation.SY)):
            bad = np.flatnonzero(~np.isfinite(moments[:, column]))
            if bad.size:
                raise ValueError(
                    f"{what}: expected finite values on tissue; got NaN or infinity in "
                    f"{bad.size} of {self.n_genes} genes, the first at index {bad[0]}"
                )
        return lam, moments

    def compute(self) -> ScaleScores:
        """Figures of everything added so far; changes nothing."""
        m, sums = self._moments, self._poisson_sums
        n, predicted, observed = m[:, correlation.N], m[:, correlation.SX], m[:, correlation.SY]
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = observed / n
            variance = m[:, correlation.SYY] / n - mean**2
            nonzero = sums[:, count_figures.NONZERO] / n
        variance = np.where(correlation.varies(m), variance, 0.0)
        null = count_figures.constant_deviance(sums, observed, n, self._null_rate)
        return ScaleScores(
            scale_um=self.scale_um,
            n_bins=int(n[0]),
            n_windows=self._ssim.n_windows,
            mean=mean,
            nonzero=nonzero,
            pcc=correlation.pearson_from_moments(m),
            pcc_ceiling=noise_ceiling(mean, variance),
            pcc_shuffled=correlation.pearson_from_moments(self._shuffled_moments),
            ssim=self._ssim.compute(),
            ssim_shuffled=self._ssim_shuffled.compute(),
            ssim_all_zero=self._ssim_all_zero.compute(),
            d2_poisson=count_figures.deviance_explained(
                count_figures.poisson_deviance(sums, observed), null
            ),
            calibration=count_figures.calibration(predicted, observed),
            pcc_pooled=correlation.pooled_pearson(m),
            calibration_total=float(count_figures.calibration(predicted.sum(), observed.sum())),
        )


def _mean(values: Float64Array) -> float:
    """Mean of the defined values; NaN where there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")

"""Accumulates all scores of one scale in a single pass over the patches of a test set."""

from __future__ import annotations

import numpy as np

from virchow_st.kernels.joint import JointHistogram
from virchow_st.kernels.neighbours import neighbour_sums
from virchow_st.kernels.pooling import pool_mask, sum_pool
from virchow_st.kernels.ssim import masked_ssims, zero_ssims
from virchow_st.kernels.thinning import thinned_moments
from virchow_st.metrics import correlation, ranks
from virchow_st.metrics import deviance as poisson_scores
from virchow_st.metrics.autocorrelation import morans_i
from virchow_st.metrics.bootstrap import BlockSums
from virchow_st.metrics.ceiling import noise_ceiling, thinned_ceiling
from virchow_st.metrics.exposed import Exposed
from virchow_st.metrics.partial import Controls, PartialSums
from virchow_st.metrics.scores import ScaleScores
from virchow_st.metrics.ssim import SsimMean
from virchow_st.types import BIN_UM, Array, BoolArray, Float32Array, Float64Array

_NULLS = ("shuffled_rate", "shifted_rate")


class ScaleAccumulator:
    """Scores of one scale, accumulated patch by patch in memory independent of their number.

    Only sums and the joint histogram of `kernels.joint` are kept, so the order of the patches
    affects the result by rounding only.

    Example:
        >>> import numpy as np
        >>> accumulator = ScaleAccumulator(n_genes=1, scale_um=2, train_rate=np.array([1.0]))
        >>> rate = np.array([[[0.1, 0.9], [2.1, 2.9]]], np.float32)
        >>> counts = np.array([[[0, 1], [2, 3]]], np.uint16)
        >>> accumulator.update(rate, counts, tissue_mask=np.ones((2, 2), bool))
        >>> scores = accumulator.compute()
        >>> scores.n_bins, round(float(scores.pcc[0]), 4), round(float(scores.calibration[0]), 4)
        (4, 0.9965, 1.0)
    """

    def __init__(
        self, n_genes: int, scale_um: int, train_rate: Float64Array, n_blocks: int = 1
    ) -> None:
        """Create an accumulator without any patches.

        Args:
            n_genes: Number of genes G.
            scale_um: Side of the scored bins, a multiple of 2 µm.
            train_rate: (G,) mean UMIs per 2 µm tissue bin over the training patients: the null
                model of ``d2_poisson``.
            n_blocks: Number of spatial blocks that the patches are assigned to, for confidence
                intervals.

        Raises:
            ValueError: ``scale_um`` is not a multiple of 2 µm, ``train_rate`` does not have shape
                (G,) or holds values that are negative or not finite, or ``n_blocks`` is below 1.
        """
        if scale_um < BIN_UM or scale_um % BIN_UM:
            raise ValueError(f"scale_um: expected a multiple of {BIN_UM}; got {scale_um}")
        train_rate = np.asarray(train_rate, dtype=np.float64)
        if train_rate.shape != (n_genes,):
            raise ValueError(f"train_rate: expected shape ({n_genes},); got {train_rate.shape}")
        if not (np.isfinite(train_rate) & (train_rate >= 0)).all():
            raise ValueError("train_rate: expected finite rates of at least 0")
        if n_blocks < 1:
            raise ValueError(f"n_blocks: expected at least 1; got {n_blocks}")
        self.n_genes, self.scale_um, self.n_blocks = n_genes, scale_um, n_blocks
        self.n_patches = 0
        self._factor = scale_um // BIN_UM
        self._null_rate = train_rate * self._factor**2
        self._moments = np.zeros((n_blocks, n_genes, 6))
        self._poisson_sums = np.zeros((n_blocks, n_genes, 4))
        self._partial = PartialSums(n_genes, n_blocks)
        self._n_bins = 0
        self._noise = np.zeros(n_genes)  # ΣK/e, of patches with an exposure
        self._plain_moments = np.zeros((n_genes, 6))
        self._has_exposure = False
        self._null_moments = {name: np.zeros((n_genes, 6)) for name in _NULLS}
        self._halves = np.zeros((n_genes, 6))
        self._neighbours, self._n_pairs = np.zeros((n_genes, 5)), 0
        self._pairs = JointHistogram(n_genes)
        self._ssim = {name: SsimMean(n_genes) for name in ("rate", *_NULLS, "zero")}

    def update(
        self,
        rate: Float32Array,
        counts: Array,
        tissue_mask: BoolArray,
        shuffled_rate: Float32Array | None = None,
        *,
        shifted_rate: Float32Array | None = None,
        block: int = 0,
        exposure: Float32Array | None = None,
        controls: Controls | None = None,
    ) -> None:
        """Add one patch.

        Args:
            rate: (G, R, C) float32, predicted UMIs per 2 µm bin. R and C (128 for a whole patch)
                are multiples of the number of 2 µm bins per scored bin. Negative rates are allowed.
            counts: (G, R, C) uint16 or float32, observed UMIs per 2 µm bin.
            tissue_mask: (R, C) bool, True = tissue. Values outside the mask are not used.
            shuffled_rate: (G, R, C) float32, the prediction for another patch, which gives the null
                score of a model that knows the tissue but not the location; None if there is no
                other patch.
            shifted_rate: (G, R, C) float32, the prediction found at this location after shifting
                the prediction of the whole slide; None if the shift leaves this patch empty.
            block: Index of the spatial block of the patch, 0 to n_blocks − 1.
            exposure: (R, C) float32, > 0 on tissue; the expected UMIs of a bin are exposure × rate,
                see docs/metrics.md. None for an exposure of 1.
            controls: What ``pcc_partial`` is given, of all patches or of none; without, it is
                undefined.

        Raises:
            ValueError: Shapes that do not match, a block index out of range, controls for some
                patches only, a prediction that is NaN or infinite on a scored bin, or counts that
                are not whole numbers of at least 0 on tissue. The accumulator is then unchanged.
        """
        shape = (self.n_genes, *tissue_mask.shape)
        given = {"rate": rate, "shuffled_rate": shuffled_rate, "shifted_rate": shifted_rate}
        rates = {name: x for name, x in given.items() if x is not None}
        for name, array in {**rates, "counts": counts}.items():
            if array.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}; got {array.shape}")
        if not 0 <= block < self.n_blocks:
            raise ValueError(f"block: expected 0 to {self.n_blocks - 1}; got {block}")
        if controls is not None and controls.total.shape != tissue_mask.shape:
            raise ValueError(
                f"controls: expected shape {tissue_mask.shape}; got {controls.total.shape}"
            )
        if self._partial.n_patches != (0 if controls is None else self.n_patches):
            raise ValueError("controls: expected them of all patches or of none; got some")
        self._check_counts(counts, tissue_mask)
        if exposure is not None:
            self._check_exposure(exposure, tissue_mask)

        mask = pool_mask(np.ascontiguousarray(tissue_mask, dtype=np.bool_), self._factor)
        k = self._pool(np.require(counts, requirements=["C", "W"]))
        pooled = {
            name: self._pool(np.require(x, np.float32, ["C", "W"])) for name, x in rates.items()
        }
        bins = None
        if exposure is not None:
            bins = Exposed.of(exposure, tissue_mask, self._factor)
            for x in rates:  # e·λ, summed over the bins of the scale, per mean exposure of these
                of_bins = rates[x] * exposure
                pooled[x] = self._pool(np.require(of_bins, np.float32, ["C", "W"])) / bins.exposure
        moments = {
            name: self._finite_moments(name, lam, k, mask, bins) for name, lam in pooled.items()
        }

        lam, flat = pooled["rate"], mask.ravel()
        observed = k if bins is None else k / bins.exposure
        ssim, n_windows = masked_ssims(tuple(pooled.values()), observed, mask)
        for name, sums in zip(pooled, ssim, strict=True):
            self._ssim[name].add(sums, n_windows)
            if name != "rate":
                self._null_moments[name] += moments[name]
        self._ssim["zero"].add(zero_ssims(observed, mask), n_windows)
        neighbours, n_pairs = neighbour_sums(lam, observed, mask)
        self._neighbours += neighbours
        self._n_pairs += n_pairs
        expected = lam if bins is None else lam * bins.exposure
        self._pairs.update(expected.reshape(self.n_genes, -1), k.reshape(self.n_genes, -1), flat)
        self._halves += thinned_moments(k.reshape(self.n_genes, -1), flat)
        self._moments[block] += moments["rate"]
        if controls is not None:
            mean = None if bins is None else bins.exposure
            of_scale = controls.pooled(self._factor, exposure, mean)
            self._partial.add(of_scale, lam, k, pooled.get("shuffled_rate"), mask, block)
        if bins is None:
            self._poisson_sums[block] += poisson_scores.poisson_sums(lam, k, mask)
        else:
            self._poisson_sums[block] += bins.poisson_sums(lam, k, mask)
            self._noise += bins.noise(k, mask)
            self._plain_moments += correlation.moments(lam, observed, mask)
            self._has_exposure = True
        self._n_bins += int(mask.sum())
        self.n_patches += 1

    def _pool(self, x: Array) -> Array:
        """Sum a map over the bins of the scale, float64; at 2 µm return it without a copy."""
        return x if self._factor == 1 else sum_pool(x, self._factor)

    def _check_counts(self, counts: Array, tissue_mask: BoolArray) -> None:
        """Raise if values are not counts; unsigned integers need no check."""
        if counts.dtype.kind == "u":
            return
        inside = counts[:, tissue_mask]
        if not (np.isfinite(inside) & (inside >= 0) & (inside == np.floor(inside))).all():
            raise ValueError(
                "counts: expected whole numbers of at least 0 on tissue; got others, in patch "
                f"{self.n_patches} of those given (from 0)"
            )

    def _check_exposure(self, exposure: Float32Array, tissue_mask: BoolArray) -> None:
        """Raise unless the exposure is a number above 0 on tissue."""
        if exposure.shape != tissue_mask.shape:
            raise ValueError(f"exposure: expected shape {tissue_mask.shape}; got {exposure.shape}")
        inside = exposure[tissue_mask]
        if not (np.isfinite(inside) & (inside > 0)).all():
            raise ValueError("exposure: expected finite numbers above 0 on tissue; got others")

    def _finite_moments(
        self, name: str, lam: Array, k: Array, mask: BoolArray, bins: Exposed | None
    ) -> Float64Array:
        """Moments of rates and counts, (G, 6); raises if a rate is NaN or infinite."""
        moments = correlation.moments(lam, k, mask) if bins is None else bins.moments(lam, k, mask)
        bad = np.flatnonzero(~np.isfinite(moments[:, correlation.SX]))
        if bad.size:
            raise ValueError(
                f"{name}: expected finite values on tissue; got NaN or infinity in "
                f"{bad.size} of {self.n_genes} genes, the first at index {bad[0]}, in patch "
                f"{self.n_patches} of those given (from 0)"
            )
        return moments

    def block_sums(self) -> BlockSums:
        """Copy of the sums per spatial block, from which `metrics.bootstrap` draws intervals."""
        partial = self._partial
        controls = (partial.products.copy(), partial.squares.copy()) if partial.n_patches else ()
        own = self._moments.copy(), self._poisson_sums.copy(), self._null_rate.copy()
        return BlockSums(*own, *controls)

    def compute(self) -> ScaleScores:
        """Scores of all patches added so far; the accumulator is unchanged."""
        m, sums = self._moments.sum(0), self._poisson_sums.sum(0)
        n, predicted, observed = m[:, correlation.N], m[:, correlation.SX], m[:, correlation.SY]
        varies = correlation.varies(m)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = observed / n
            variance = m[:, correlation.SYY] / n - mean**2
            nonzero = sums[:, poisson_scores.NONZERO] / self._n_bins
            noise = self._noise / n if self._has_exposure else mean
        variance = np.where(varies, variance, 0.0)
        deviance = poisson_scores.poisson_deviance(sums, observed)
        train_null = poisson_scores.constant_deviance(sums, observed, n, self._null_rate)
        test_null = poisson_scores.constant_deviance(sums, observed, n, mean)
        halves = np.nan_to_num(correlation.pearson_from_moments(self._halves))
        if self._has_exposure:  # halves of the counts would share the stripes
            halves = np.full(self.n_genes, np.nan)
        plain = self._plain_moments if self._has_exposure else m
        moran = morans_i(plain, self._neighbours, self._n_pairs)
        rank = ranks.rank_scores(self._pairs, self.n_genes)
        partial, left, partial_null = self._partial.compute(m, self._null_moments["shuffled_rate"])
        return ScaleScores(
            scale_um=self.scale_um,
            n_bins=self._n_bins,
            n_windows=self._ssim["rate"].n_windows,
            mean=mean,
            nonzero=nonzero,
            pcc=correlation.pearson_from_moments(m),
            pcc_ceiling=noise_ceiling(noise, variance),
            pcc_ceiling_thinned=np.where(varies, thinned_ceiling(halves), np.nan),
            pcc_shuffled=correlation.pearson_from_moments(self._null_moments["shuffled_rate"]),
            pcc_shifted=correlation.pearson_from_moments(self._null_moments["shifted_rate"]),
            pcc_partial=partial,
            pcc_partial_ceiling=noise_ceiling(noise, left),
            pcc_partial_shuffled=partial_null,
            spearman=rank[:, ranks.SPEARMAN],
            ssim=self._ssim["rate"].compute(),
            ssim_shuffled=self._ssim["shuffled_rate"].compute(),
            ssim_shifted=self._ssim["shifted_rate"].compute(),
            ssim_all_zero=self._ssim["zero"].compute(),
            d2_poisson=poisson_scores.deviance_explained(deviance, train_null),
            d2_poisson_test_mean=np.where(
                varies, poisson_scores.deviance_explained(deviance, test_null), np.nan
            ),
            auprc=rank[:, ranks.AUPRC],
            auprc_prevalence=rank[:, ranks.PREVALENCE],
            auroc=rank[:, ranks.AUROC],
            calibration=poisson_scores.calibration(predicted, observed),
            morans_i_predicted=moran[0],
            morans_i_observed=moran[1],
            morans_i_residual=moran[2],
            pcc_pooled=correlation.pooled_pearson(m),
            calibration_total=float(poisson_scores.calibration(predicted.sum(), observed.sum())),
        )

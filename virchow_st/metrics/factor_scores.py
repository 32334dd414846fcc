"""Scores of all genes at one scale, for rates that are factors times loadings.

The rate of gene g in bin x is ``Λ_g(x) = Σ_k W_gk·H_k(x)``. The sums of rates and of their squares
over bins are ``W_g·ΣH`` and ``W_g·(ΣH Hᵀ)·W_gᵀ``, and sums of products with counts need only the
non-zero counts. Scores of 18,000 genes therefore cost O(n·K² + nnz·K + G·K²) for n bins, nnz
non-zero counts and K factors, and rates are never computed for all genes and bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from virchow_st.kernels import factor_moments as kernel
from virchow_st.kernels.pooling import pool_mask
from virchow_st.metrics import correlation
from virchow_st.metrics import deviance as poisson_scores
from virchow_st.metrics.bootstrap import BlockSums
from virchow_st.metrics.ceiling import noise_ceiling
from virchow_st.metrics.exposed import Exposed
from virchow_st.types import BIN_UM, Array, BoolArray, Float64Array, Int64Array


@dataclass(frozen=True)
class AllGeneScores:
    """Scores of one scale, one value per gene, NaN where undefined; docs/metrics.md defines them.

    Attributes:
        scale_um: Side of the scored bins, µm.
        n_bins: Number of scored bins: those whose 2 µm bins are all tissue.
        mean: (G,) mean observed UMIs per scored bin.
        nonzero: (G,) share of scored bins with at least one UMI.
        pcc: (G,) Pearson's r of predicted rate and observed counts over bins.
        pcc_ceiling: (G,) Pearson's r that the true rates would reach.
        pcc_null: (n_nulls, G) ``pcc`` of each null prediction.
        d2_poisson: (G,) share of the Poisson deviance of the training mean that is explained.
        calibration: (G,) predicted over observed total UMIs.
    """

    scale_um: int
    n_bins: int
    mean: Float64Array
    nonzero: Float64Array
    pcc: Float64Array
    pcc_ceiling: Float64Array
    pcc_null: Float64Array
    d2_poisson: Float64Array
    calibration: Float64Array

    @property
    def scored(self) -> BoolArray:
        """(G,) bool, True for genes whose counts vary, so that a correlation is defined."""
        return ~np.isnan(self.pcc)


class FactorScores:
    """Scores of all genes at one scale, accumulated patch by patch.

    The scores equal those of `ScaleAccumulator` on the dense rates ``W·H``, but for one point:
    there, rates below `metrics.deviance.RATE_FLOOR` are raised to it in the sum of rates of a
    deviance, too, and here only in its logarithms. Memory is 8·(5 + n_nulls)·G bytes per block.

    Example:
        >>> import numpy as np
        >>> loadings = np.array([[1.0, 0.0], [0.5, 2.0]])  # two genes, two factors
        >>> factors = np.array([[0.1, 1.0], [0.9, 1.0], [2.1, 1.0], [2.9, 1.0]])  # 2 × 2 bins
        >>> scores = FactorScores(loadings, scale_um=2, train_rate=np.array([1.0, 2.0]))
        >>> scores.update(
        ...     start=np.array([0, 3, 5]),
        ...     position=np.array([1, 2, 3, 0, 3], np.uint16),
        ...     count=np.array([1, 2, 3, 2, 4], np.uint32),
        ...     factors=factors,
        ...     tissue_mask=np.ones((2, 2), bool),
        ... )
        >>> found = scores.compute()
        >>> found.n_bins, found.mean.tolist(), found.pcc.round(4).tolist()
        (4, [1.5, 1.5], [0.9965, 0.3919])
    """

    def __init__(
        self,
        loadings: Array,
        scale_um: int,
        train_rate: Float64Array,
        n_blocks: int = 1,
        n_nulls: int = 0,
    ) -> None:
        """Create an accumulator without any patches.

        Args:
            loadings: (G, K) float32 or float64, W.
            scale_um: Side of the scored bins, a multiple of 2 µm.
            train_rate: (G,) mean UMIs per 2 µm tissue bin over the training patients: the null
                model of ``d2_poisson``.
            n_blocks: Number of spatial blocks that the patches are assigned to, for confidence
                intervals.
            n_nulls: Number of null predictions per patch, such as those for other patches.

        Raises:
            ValueError: ``scale_um`` is not a multiple of 2 µm, loadings are not finite,
                ``train_rate`` does not have shape (G,) or holds values that are negative or not
                finite, ``n_blocks`` is below 1 or ``n_nulls`` below 0.
        """
        if scale_um < BIN_UM or scale_um % BIN_UM:
            raise ValueError(f"scale_um: expected a multiple of {BIN_UM}; got {scale_um}")
        if loadings.ndim != 2 or not np.isfinite(loadings).all():
            raise ValueError(f"loadings: expected (G, K), all finite; got {loadings.shape}")
        n_genes, n_factors = loadings.shape
        train_rate = np.asarray(train_rate, dtype=np.float64)
        if train_rate.shape != (n_genes,):
            raise ValueError(f"train_rate: expected shape ({n_genes},); got {train_rate.shape}")
        if not (np.isfinite(train_rate) & (train_rate >= 0)).all():
            raise ValueError("train_rate: expected finite rates of at least 0")
        if n_blocks < 1 or n_nulls < 0:
            raise ValueError(
                f"n_blocks, n_nulls: expected at least 1 and 0; got {n_blocks} and {n_nulls}"
            )
        self.scale_um, self.n_blocks, self.n_nulls, self.n_patches = scale_um, n_blocks, n_nulls, 0
        self._factor = scale_um // BIN_UM
        self._null_rate = train_rate * self._factor**2
        self._loadings = np.ascontiguousarray(loadings)
        self._n_bins = np.zeros(n_blocks, np.int64)
        self._beyond_one = np.zeros(n_blocks)  # Σe − n over bins with an exposure e
        self._noise, self._has_exposure = np.zeros(n_genes), False
        self._sums = np.zeros((n_blocks, n_genes, kernel.COUNT_RATE + 1 + n_nulls))
        self._h = np.zeros((n_blocks, 1 + n_nulls, n_factors))
        self._hh = np.zeros((n_blocks, 1 + n_nulls, n_factors, n_factors))

    def update(
        self,
        start: Int64Array,
        position: Array,
        count: Array,
        factors: Array,
        tissue_mask: BoolArray,
        nulls: Sequence[Array] = (),
        block: int = 0,
        exposure: Array | None = None,
    ) -> None:
        """Add one patch.

        Args:
            start: (G + 1,) int64, index of each gene's first count, and the end of the last gene's.
            position: (nnz,) uint16 ``row * C + col`` of the 2 µm bin of each count.
            count: (nnz,) UMIs, > 0; counts outside the scored bins are not used.
            factors: (N, K) float, H of the N bins of the scale, row-major, summed over their 2 µm
                bins; with an exposure, at an exposure of 1. Values of bins that are not scored are
                not used.
            tissue_mask: (R, C) bool at 2 µm, True = tissue; sides that the scale divides.
            nulls: ``n_nulls`` arrays like ``factors`` that are not the prediction for this place,
                such as those of other patches.
            block: Index of the spatial block of the patch, 0 to n_blocks − 1.
            exposure: (R, C) at 2 µm, > 0 on tissue: the expected UMIs of a bin are exposure × rate,
                see `metrics.exposed`. None for an exposure of 1.

        Raises:
            ValueError: Shapes that do not match, a position, block or number of nulls out of range,
                factors that are not finite on a scored bin, or counts that are not whole numbers
                above 0. The accumulator is then unchanged.
        """
        mask = pool_mask(np.ascontiguousarray(tissue_mask, dtype=np.bool_), self._factor)
        self._check(start, position, count, [factors, *nulls], mask, tissue_mask.size, block)
        stacked = np.stack([factors, *nulls])
        scored = stacked[:, mask.ravel()].astype(np.float64)
        if not np.isfinite(scored).all():
            raise ValueError(
                "factors: expected finite values on scored bins; got NaN or infinity, in patch "
                f"{self.n_patches} of those given (from 0)"
            )
        kernel.factor_moments(
            start, position, count, self._loadings, stacked, mask, self._factor,
            poisson_scores.RATE_FLOOR, 0, len(self._loadings), self._sums[block],
        )  # fmt: skip
        weighted = scored
        if exposure is not None:
            bins = Exposed.of(exposure, tissue_mask, self._factor)
            self._add_exposure(start, position, count, bins.exposure, mask, block)
            weighted = scored * bins.exposure[mask][:, None]
        self._h[block] += weighted.sum(1)
        for own, h, of_weight in zip(self._hh[block], scored, weighted, strict=True):
            own += of_weight.T @ h
        self._n_bins[block] += scored.shape[1]
        self.n_patches += 1

    def _add_exposure(
        self,
        start: Int64Array,
        position: Array,
        count: Array,
        exposure: Float64Array,
        mask: BoolArray,
        block: int,
    ) -> None:
        """Turn ΣK² into ΣK²/e and ΣK·ln K into ΣK·ln(K/e); add Σe − n and ΣK/e."""
        n_genes, (n_rows, n_cols) = len(self._loadings), mask.shape
        row, col = np.divmod(position.astype(np.int64), n_cols * self._factor)
        place = row // self._factor * n_cols + col // self._factor
        gene = np.repeat(np.arange(n_genes), np.diff(start))
        inside = mask.ravel()[place]
        key, at = np.unique(gene[inside] * (n_rows * n_cols) + place[inside], return_inverse=True)
        umis = np.bincount(at, count[inside], len(key)).astype(np.float64)
        gene, place = np.divmod(key, n_rows * n_cols)
        e = exposure.ravel()[place]

        def by_gene(values: Float64Array) -> Float64Array:
            return np.bincount(gene, values, n_genes).astype(np.float64)

        self._sums[block, :, kernel.COUNT_SQUARED] += by_gene(umis**2 / e - umis**2)
        self._sums[block, :, kernel.COUNT_LOG_COUNT] -= by_gene(umis * np.log(e))
        self._noise += by_gene(umis / e)
        self._beyond_one[block] += (exposure[mask] - 1).sum()
        self._has_exposure = True

    def _check(
        self,
        start: Int64Array,
        position: Array,
        count: Array,
        factors: list[Array],
        mask: BoolArray,
        n_positions: int,
        block: int,
    ) -> None:
        n_genes, n_factors = self._loadings.shape
        if start.shape != (n_genes + 1,) or not len(position) == len(count) == start[-1]:
            raise ValueError(
                f"start: expected shape ({n_genes + 1},), ending at the number of positions and "
                f"counts; got {start.shape}, {len(position)} positions and {len(count)} counts"
            )
        if len(position) and position.max() >= n_positions:
            raise ValueError(f"position: expected below {n_positions}; got {position.max()}")
        if not ((count > 0) & (count == np.floor(count))).all():
            raise ValueError("count: expected whole numbers above 0; got others")
        if len(factors) != 1 + self.n_nulls:
            raise ValueError(f"nulls: expected {self.n_nulls} arrays; got {len(factors) - 1}")
        for x in factors:
            if x.shape != (mask.size, n_factors):
                expected = (mask.size, n_factors)
                raise ValueError(f"factors and nulls: expected shape {expected}; got {x.shape}")
        if not 0 <= block < self.n_blocks:
            raise ValueError(f"block: expected 0 to {self.n_blocks - 1}; got {block}")

    def block_sums(self) -> BlockSums:
        """Sums per spatial block, from which `metrics.bootstrap` draws intervals."""
        blocks = range(self.n_blocks)
        moments = np.stack([self._moments(self._parts(b), 0) for b in blocks])
        poisson_sums = np.stack([self._poisson_sums(self._parts(b)) for b in blocks])
        return BlockSums(moments, poisson_sums, self._null_rate.copy())

    def compute(self) -> AllGeneScores:
        """Scores of all patches added so far; the accumulator is unchanged."""
        parts = self._parts()
        moments, sums = self._moments(parts, 0), self._poisson_sums(parts)
        nulls = [self._moments(parts, 1 + i) for i in range(self.n_nulls)]
        n, predicted, observed = (moments[:, c] for c in _N_AND_TOTALS)
        varies = correlation.varies(moments)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = observed / n
            nonzero = sums[:, poisson_scores.NONZERO] / parts.n_bins
            variance = np.where(varies, moments[:, correlation.SYY] / n - mean**2, 0.0)
            noise = self._noise / n if self._has_exposure else mean
        deviance = poisson_scores.poisson_deviance(sums, observed)
        null = poisson_scores.constant_deviance(sums, observed, n, self._null_rate)
        pcc_null = [correlation.pearson_from_moments(m) for m in nulls]
        return AllGeneScores(
            scale_um=self.scale_um,
            n_bins=int(self._n_bins.sum()),
            mean=mean,
            nonzero=nonzero,
            pcc=correlation.pearson_from_moments(moments),
            pcc_ceiling=noise_ceiling(noise, variance),
            pcc_null=np.array(pcc_null).reshape(self.n_nulls, len(mean)),
            d2_poisson=poisson_scores.deviance_explained(deviance, null),
            calibration=poisson_scores.calibration(predicted, observed),
        )

    def _parts(self, block: int | None = None) -> _Parts:
        """The sums of one block, or of all."""
        own = slice(None) if block is None else slice(block, block + 1)
        every = (self._n_bins, self._beyond_one, self._sums, self._h, self._hh)
        return _Parts(*(x[own].sum(0) for x in every))

    def _moments(self, parts: _Parts, prediction: int) -> Float64Array:
        """Moments (G, 6) of a prediction and the counts, as `metrics.correlation.moments`."""
        W = self._loadings.astype(np.float64)
        sums = parts.sums
        moments = np.empty((len(W), 6))
        moments[:, correlation.N] = parts.n_bins + parts.beyond_one
        moments[:, correlation.SX] = W @ parts.h[prediction]
        moments[:, correlation.SY] = sums[:, kernel.COUNT]
        moments[:, correlation.SXX] = ((W @ parts.hh[prediction]) * W).sum(1)
        moments[:, correlation.SYY] = sums[:, kernel.COUNT_SQUARED]
        moments[:, correlation.SXY] = sums[:, kernel.COUNT_RATE + prediction]
        return moments

    def _poisson_sums(self, parts: _Parts) -> Float64Array:
        """Sums (G, 4) of the prediction, as `metrics.deviance.poisson_sums`."""
        out = np.empty((len(self._loadings), 4))
        out[:, poisson_scores.NONZERO] = parts.sums[:, kernel.NONZERO]
        out[:, poisson_scores.RATE] = self._loadings.astype(np.float64) @ parts.h[0]
        out[:, poisson_scores.K_LOG_RATE] = parts.sums[:, kernel.COUNT_LOG_RATE]
        out[:, poisson_scores.K_LOG_K] = parts.sums[:, kernel.COUNT_LOG_COUNT]
        return out


_N_AND_TOTALS = (correlation.N, correlation.SX, correlation.SY)


@dataclass(frozen=True)
class _Parts:
    """Sums over the bins of some blocks, of predictions P: the one that is scored and the nulls."""

    n_bins: Int64Array  # ()
    beyond_one: Float64Array  # (), sum over bins of their exposure less 1
    sums: Float64Array  # (G, 5 + P)
    h: Float64Array  # (P, K)
    hh: Float64Array  # (P, K, K)

"""Two halves of a slide's UMIs: rates of simpler ways by one, and sums of any rates on the other.

Letters: n observed tissue bins, G genes, (R, C) bins of the lattice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from virchow_st.denoise.fit import smoother_of
from virchow_st.denoise.own import column, gene_columns
from virchow_st.denoise.slide import SlideCounts
from virchow_st.kernels.pooling import pool_mask, sum_pool
from virchow_st.metrics.correlation import SX, SY, N, moments, pearson_from_moments
from virchow_st.metrics.deviance import (
    calibration,
    constant_deviance,
    deviance_explained,
    poisson_deviance,
    poisson_sums,
)
from virchow_st.run.split import BLOCK_PATCHES, LEAST_BLOCKS
from virchow_st.training.rows import SparseRows
from virchow_st.types import (
    BIN_UM,
    PATCH_BINS,
    SCALES_UM,
    BoolArray,
    Float32Array,
    Float64Array,
    Int64Array,
)

GAUSSIANS_UM = (2.0, 2.8, 4.0, 5.7, 8.0, 11.3, 16.0, 22.6, 32.0, 64.0)
"""Standard deviations that the best Gaussian of a gene is chosen from, µm."""
FACTORS = tuple(scale // BIN_UM for scale in SCALES_UM)
"""Bins of 2 µm along a bin of each scale."""
_FITTED_SHARE = 0.8
_FLOOR = 1e-9  # UMIs per bin, so that a Gaussian that missed a count can be compared


@dataclass(eq=False)
class Half:
    """Gene by gene, the maps of both halves and the rates of the simpler ways."""

    slide: SlideCounts
    kept: SparseRows
    held_out: SparseRows
    genes: Int64Array
    seed: int

    def __post_init__(self) -> None:
        self._smoother = smoother_of(self.slide)
        self._kept, self._held_out = (
            gene_columns(x, self.genes) for x in (self.kept, self.held_out)
        )
        seen = np.zeros_like(self.slide.tissue)  # bins that failed are not scored
        seen.ravel()[self.slide.place] = True
        self._masks = {f: pool_mask(seen, f) for f in FACTORS}
        self.blocks, self.side = cut_squares(seen)
        n = len(self.kept)
        self.width_um: dict[int, float] = {}
        self._mean = np.asarray(self._kept.sum(axis=0), np.float64).ravel() / n
        totals = self.kept.totals.astype(np.float32)
        self._total = self._smoother.smoothed(totals, self._best_width(totals, self.seed))
        self._total /= self._total.mean(dtype=np.float64)

    def of(self, factors: Float32Array, loadings: Float64Array) -> Float32Array:
        """Expected UMIs of the kept half by factors (n, K) and a gene's loadings (K,)."""
        return self.expected(factors @ loadings.astype(np.float32))

    def expected(self, rate: Float32Array) -> Float32Array:
        """Expected UMIs of the kept half by a rate (n,)."""
        return np.asarray(rate * self.kept.exposure, np.float32)

    def raw(self, i: int) -> Float32Array:
        """The counts of the kept half themselves."""
        return column(self._kept, i)

    def total(self, i: int) -> Float32Array:
        """Smoothed UMIs of all genes times the gene's mean."""
        return np.asarray(self._total * self._smoother.exposure * np.float32(self._mean[i]))

    def gaussian(self, i: int) -> Float32Array:
        """The gene's counts smoothed by the Gaussian that predicts a held-out fifth best."""
        counts = column(self._kept, i)
        self.width_um[i] = self._best_width(counts, self.seed + 1 + int(self.genes[i]))
        rate = self._smoother.smoothed(counts, self.width_um[i])
        return np.asarray(rate * self._smoother.exposure)

    def _best_width(self, counts: Float32Array, seed: int) -> float:
        rng = np.random.default_rng([seed, 2])
        fitted = rng.binomial(counts.astype(np.int64), _FITTED_SHARE).astype(np.float32)
        left, ratio = counts - fitted, 1 / _FITTED_SHARE - 1
        there = np.flatnonzero(left)

        def likelihood(width_um: float) -> float:
            rate = (self._smoother.smoothed(fitted, width_um) * self._smoother.exposure)[there]
            rate *= ratio
            # The sum of the rates is the same for all widths.
            return float(left[there] @ np.log(np.maximum(rate, _FLOOR)))

        return max(GAUSSIANS_UM, key=likelihood)

    def held_out_maps(self, i: int) -> dict[int, Float64Array]:
        """The held-out UMIs of a gene at each scale."""
        grid = self._smoother.on_lattice(column(self._held_out, i))[None]
        return {f: sum_pool(grid, f) for f in FACTORS}

    def sums(
        self, rate: Float32Array, observed: dict[int, Float64Array]
    ) -> tuple[Float64Array, Float64Array]:
        """Sums of a gene's rates and held-out UMIs in each block.

        Returns:
            (n_blocks, 4 scales, 6) of `virchow_st.metrics.correlation.moments` and (n_blocks, 4
            scales, 4) of `virchow_st.metrics.deviance.poisson_sums`.
        """
        grid = self._smoother.on_lattice(rate)[None]
        shape = len(self.blocks), len(SCALES_UM)
        found = np.empty((*shape, 6)), np.empty((*shape, 4))
        for j, f in enumerate(FACTORS):
            rates, counts, mask = sum_pool(grid, f), observed[f], self._masks[f]
            for b, (row, col) in enumerate(self.blocks):
                at = (
                    slice(row // f, (row + self.side) // f),
                    slice(col // f, (col + self.side) // f),
                )
                own = np.ascontiguousarray(mask[at])
                x, y = (np.ascontiguousarray(grid_f[:, *at]) for grid_f in (rates, counts))
                found[0][b, j] = moments(x, y, own)[0]
                found[1][b, j] = poisson_sums(x, y, own)[0]
        return found

    def null_rate(self, i: int, factor: int) -> float:
        """The gene's mean in the kept half, UMIs per bin of so many 2 µm bins along a side."""
        return float(self._mean[i]) * factor**2

    def scored(
        self, moments_6: Float64Array, sums_4: Float64Array, i: int, factor: int
    ) -> Float64Array:
        """D², PCC and calibration of a gene at a scale, (3,), from its sums over all blocks."""
        n, predicted, total = moments_6[N], moments_6[SX], moments_6[SY]
        if not total or np.isnan(predicted):
            return np.full(3, np.nan)  # nothing was held out, or the run does not predict the gene
        null = constant_deviance(sums_4, total, n, np.array(self.null_rate(i, factor)))
        return np.array([
            deviance_explained(poisson_deviance(sums_4, total), null),
            pearson_from_moments(moments_6),
            calibration(predicted, total),
        ])  # fmt: skip


def cut_squares(seen: BoolArray) -> tuple[list[tuple[int, int]], int]:
    """First row and column of the square blocks that hold seen bins, and their side in bins.

    As in ``vst evaluate``: 2×2 patches, or single ones where these would be too few to draw from.
    """
    n_rows, n_cols = seen.shape
    for patches in (BLOCK_PATCHES, 1):
        side = patches * PATCH_BINS
        found = [
            (row, col)
            for row in range(0, n_rows, side)
            for col in range(0, n_cols, side)
            if seen[row : row + side, col : col + side].any()
        ]
        if len(found) >= LEAST_BLOCKS:
            break
    return found, side

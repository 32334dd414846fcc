"""Scores of a denoised slide on UMIs that were held out, beside simpler ways.

Letters: n observed tissue bins, G genes, (R, C) bins of the lattice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from virchow_st.denoise.estimate import estimate, smoother_of
from virchow_st.denoise.own import column, gene_columns
from virchow_st.denoise.prior import Prior
from virchow_st.denoise.slide import SlideCounts
from virchow_st.kernels.pooling import pool_mask, sum_pool
from virchow_st.metrics.correlation import moments, pearson_from_moments
from virchow_st.metrics.deviance import (
    calibration,
    constant_deviance,
    deviance_explained,
    poisson_deviance,
    poisson_sums,
)
from virchow_st.metrics.discovery import N_GROUPS, by_decile
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.training.rows import SparseRows
from virchow_st.types import (
    BIN_UM,
    SCALES_UM,
    Float32Array,
    Float64Array,
    Int64Array,
)

RAW, TOTAL, GAUSSIAN, DENOISED = "raw", "total", "gaussian", "denoised"
PRIOR, COUNTS = "prior", "counts"
SCORES = "d2_poisson", "pcc", "calibration"
N_PANEL = 50
"""The most variable genes, over which scores are averaged."""
N_PER_DECILE = 20
"""Genes per abundance decile, evenly spaced by abundance."""
GAUSSIANS_UM = (2.0, 2.8, 4.0, 5.7, 8.0, 11.3, 16.0, 22.6, 32.0, 64.0)
"""Standard deviations that the best Gaussian of a gene is chosen from, µm."""
_FITTED_SHARE = 0.8
_FLOOR = 1e-9  # UMIs per bin, so that a Gaussian that missed a count can be compared


def score_slide(
    slide: SlideCounts,
    n_factors: int,
    seed: int,
    progress: Progress = SILENT,
    prior: Prior | None = None,
) -> dict[str, Any]:
    """Denoise one half of the UMIs and score the rates on the other half.

    Every UMI goes to one of the halves at random. Whatever is chosen (factors, widths, the
    most variable genes) is chosen on the first half.

    Args:
        slide: All counts.
        n_factors: Number of factors; 0 to choose it.
        seed: Seed of the halves and of the estimate.
        progress: Receives notes and step counts.
        prior: Maps of a run; scored alone and left out as well.

    Returns:
        What ``--json`` writes, see docs/denoise.md.
    """
    kept, held_out = slide.rows.thinned(0.5, np.random.default_rng([seed, 1]))
    part = slide.with_rows(kept)
    found = estimate(part, n_factors, seed, progress, prior)
    abundance = kept.gene_totals / len(kept)
    panel = _most_variable(kept)
    sample = _by_abundance(abundance)
    genes = np.union1d(panel, sample)
    half = _Half(slide, kept, held_out, genes, seed)
    rate_of: dict[str, Callable[[int], Float32Array]] = {
        RAW: half.raw,
        TOTAL: half.total,
        GAUSSIAN: half.gaussian,
    }
    if prior is not None:
        given = prior
        progress.note("the same from the counts alone, to compare")
        alone = estimate(part, found.recipe.n_factors, seed, progress).rates
        rate_of[PRIOR] = lambda i: half.of(given.maps, given.loadings[genes[i]])
        rate_of[COUNTS] = lambda i: half.of(alone.factors, alone.loadings[genes[i]])
    rate_of[DENOISED] = lambda i: half.of(found.rates.factors, found.rates.loadings[genes[i]])
    methods = tuple(rate_of)
    shape = len(methods), len(SCORES), len(SCALES_UM), len(genes)
    values = np.full(shape, np.nan)
    for i in range(len(genes)):
        observed = half.held_out_maps(i)
        for m, method in enumerate(methods):
            values[m, :, :, i] = half.scored(rate_of[method](i), observed, i)
        progress.step(i + 1, len(genes), "genes scored")
    in_panel, in_sample = np.isin(genes, panel), np.isin(genes, sample)
    return {
        "held_out_share": 0.5,
        "seed": seed,
        "n_factors": found.recipe.n_factors,
        "n_own": len(found.recipe.own),
        "width_um": found.recipe.width_um,
        "panel": [slide.panel.symbols[g] or slide.panel.ids[g] for g in panel],
        "gaussian_um": {
            "panel_median": float(
                np.median([half.width_um[i] for i in np.flatnonzero(in_panel).tolist()])
            )
        },
        "scales": {
            str(scale): {
                method: {score: _mean(values[m, s, j, in_panel]) for s, score in enumerate(SCORES)}
                for m, method in enumerate(methods)
            }
            for j, scale in enumerate(SCALES_UM)
        },
        "by_abundance": {
            str(scale): _deciles(
                values[:, :, j][:, :, in_sample], abundance[genes[in_sample]], methods
            )
            for j, scale in enumerate(SCALES_UM)
        },
    }


@dataclass
class _Half:
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
        self._masks = {f: pool_mask(seen, f) for f in _factors()}
        n = len(self.kept)
        self.width_um: dict[int, float] = {}
        self._mean = np.asarray(self._kept.sum(axis=0), np.float64).ravel() / n
        totals = self.kept.totals.astype(np.float32)
        self._total = self._smoother.smoothed(totals, self._best_width(totals, self.seed))
        self._total /= self._total.mean(dtype=np.float64)

    def of(self, factors: Float32Array, loadings: Float64Array) -> Float32Array:
        """Expected UMIs of the kept half by factors (n, K) and a gene's loadings (K,)."""
        rate = factors @ loadings.astype(np.float32)
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
        return {f: sum_pool(grid, f) for f in _factors()}

    def scored(self, rate: Float32Array, observed: dict[int, Float64Array], i: int) -> Float64Array:
        """Scores of a gene's rates, (3 scores, 4 scales)."""
        grid = self._smoother.on_lattice(rate)[None]
        found = np.full((len(SCORES), len(SCALES_UM)), np.nan)
        for j, f in enumerate(_factors()):
            rates, counts, mask = sum_pool(grid, f), observed[f], self._masks[f]
            n, total = np.count_nonzero(mask), counts[:, mask].sum(axis=1)
            if not total[0] or np.isnan(rates).any():
                continue  # nothing was held out, or the run does not predict the gene: no score
            sums = poisson_sums(rates, counts, mask)
            null = constant_deviance(
                sums, total, np.array([float(n)]), self._mean[i : i + 1] * f * f
            )
            found[0, j] = deviance_explained(poisson_deviance(sums, total), null)[0]
            found[1, j] = pearson_from_moments(moments(rates, counts, mask))[0]
            found[2, j] = calibration(rates[:, mask].sum(axis=1), total)[0]
        return found


def _factors() -> Iterator[int]:
    """Bins of 2 µm along a bin of each scale."""
    return (scale // BIN_UM for scale in SCALES_UM)


def _most_variable(rows: SparseRows) -> Int64Array:
    """Genes with the largest variance of counts per tissue bin, in rising order of index."""
    squares = np.bincount(rows.gene, rows.count.astype(np.float64) ** 2, rows.n_genes)
    variance = squares / len(rows) - (rows.gene_totals / len(rows)) ** 2
    return np.sort(np.argsort(-variance, kind="stable")[:N_PANEL])


def _by_abundance(abundance: Float64Array) -> Int64Array:
    """Genes evenly spaced by abundance, among those with any UMIs."""
    order = np.argsort(abundance, kind="stable")
    order = order[abundance[order] > 0]
    n = min(len(order), N_GROUPS * N_PER_DECILE)
    return np.sort(order[np.linspace(0, len(order) - 1, n).round().astype(np.int64)])


def _deciles(
    values: Float64Array, abundance: Float64Array, methods: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Mean scores of each method by abundance decile, least abundant first; (M, S, genes)."""
    found: list[dict[str, Any]] = []
    groups = {
        (method, score): by_decile(values[m, s], abundance)
        for m, method in enumerate(methods)
        for s, score in enumerate(SCORES)
    }
    first = groups[DENOISED, SCORES[0]]
    for d in range(N_GROUPS):
        scores = {
            method: {score: _number(groups[method, score].mean[d]) for score in SCORES}
            for method in methods
        }
        abundant = {"umis_per_bin": _number(first.abundance[d]), "n_genes": int(first.n_genes[d])}
        found.append(abundant | scores)
    return found


def _mean(values: Float64Array) -> float | None:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

"""Scores of a denoised slide on UMIs that were held out, beside simpler ways.

Letters: n observed tissue bins, G genes, (R, C) bins of the lattice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from virchow_st.denoise.estimate import estimate
from virchow_st.denoise.half import FACTORS, Half
from virchow_st.denoise.prior import Prior
from virchow_st.denoise.slide import SlideCounts
from virchow_st.metrics import correlation
from virchow_st.metrics.bootstrap import BlockSums
from virchow_st.metrics.discovery import N_GROUPS, by_decile
from virchow_st.run.compare import differences, intervals
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.training.rows import SparseRows
from virchow_st.types import BIN_UM, SCALES_UM, Float32Array, Float64Array, Int64Array

RAW, TOTAL, GAUSSIAN, DENOISED = "raw", "total", "gaussian", "denoised"
PRIOR, COUNTS = "prior", "counts"
SCORES = "d2_poisson", "pcc", "calibration"
N_PANEL = 50
"""The most variable genes, over which scores are averaged."""
N_PER_DECILE = 20
"""Genes per abundance decile, evenly spaced by abundance."""


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
    half = Half(slide, kept, held_out, genes, seed)
    rate_of: dict[str, Callable[[int], Float32Array]] = {
        RAW: half.raw,
        TOTAL: half.total,
        GAUSSIAN: half.gaussian,
    }
    if prior is not None:
        given = prior
        progress.note("the same from the counts alone, to compare")
        alone = estimate(part, found.recipe.n_factors, seed, progress).rates
        rate_of[PRIOR] = lambda i: half.expected(given.rate(genes[i]))
        rate_of[COUNTS] = lambda i: half.of(alone.factors, alone.loadings[genes[i]])
    rate_of[DENOISED] = lambda i: half.of(found.rates.factors, found.rates.loadings[genes[i]])
    methods = tuple(rate_of)
    shape = len(methods), len(SCORES), len(SCALES_UM), len(genes)
    values = np.full(shape, np.nan)
    in_panel, in_sample = np.isin(genes, panel), np.isin(genes, sample)
    of_panel = _PanelSums(methods, len(half.blocks), len(panel))
    for i in range(len(genes)):
        observed = half.held_out_maps(i)
        for m, method in enumerate(methods):
            of_blocks = half.sums(rate_of[method](i), observed)
            for j, (x, y) in enumerate(zip(*(s.sum(0) for s in of_blocks), strict=True)):
                values[m, :, j, i] = half.scored(x, y, i, FACTORS[j])
            if in_panel[i]:
                of_panel.put(m, int(in_panel[:i].sum()), of_blocks)
        progress.step(i + 1, len(genes), "genes scored")
    null = np.array(
        [[half.null_rate(i, f) for i in np.flatnonzero(in_panel).tolist()] for f in FACTORS]
    )
    sums = of_panel.by_method(null)
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
                | intervals(sums[method][scale])
                for m, method in enumerate(methods)
            }
            for j, scale in enumerate(SCALES_UM)
        },
        "block_um": half.side * BIN_UM,
        "n_blocks": len(half.blocks),
        "differences": {
            method: _differences(sums[DENOISED], sums[method])
            for method in methods
            if method != DENOISED
        },
        "by_abundance": {
            str(scale): _deciles(
                values[:, :, j][:, :, in_sample], abundance[genes[in_sample]], methods
            )
            for j, scale in enumerate(SCALES_UM)
        },
    }


@dataclass(eq=False)
class _PanelSums:
    """Sums per block of the panel's genes, by method and scale."""

    methods: tuple[str, ...]
    n_blocks: int
    n_genes: int

    def __post_init__(self) -> None:
        shape = len(self.methods), len(SCALES_UM), self.n_blocks, self.n_genes
        self._moments, self._poisson = np.empty((*shape, 6)), np.empty((*shape, 4))

    def put(self, method: int, gene: int, of_blocks: tuple[Float64Array, Float64Array]) -> None:
        """Keep the sums of a gene, (n_blocks, 4 scales, 6) and (n_blocks, 4 scales, 4)."""
        for kept, sums in zip((self._moments, self._poisson), of_blocks, strict=True):
            kept[method, :, :, gene] = np.moveaxis(sums, 1, 0)

    def by_method(self, null_rate: Float64Array) -> dict[str, dict[int, BlockSums]]:
        """Method → scale in µm → sums; null_rate (4 scales, genes)."""
        return {
            method: {
                scale: BlockSums(self._moments[m, j], self._poisson[m, j], null_rate[j])
                for j, scale in enumerate(SCALES_UM)
            }
            for m, method in enumerate(self.methods)
        }


def _differences(a: dict[int, BlockSums], b: dict[int, BlockSums]) -> dict[str, Any]:
    """Scores of a less those of b, over the genes for which both have rates."""
    n, sx = correlation.N, correlation.SX
    there = ~np.isnan(b[BIN_UM].moments[:, :, [n, sx]]).any(axis=(0, 2))

    def of(sums: BlockSums) -> BlockSums:
        chosen = sums.moments[:, there], sums.poisson_sums[:, there], sums.null_rate[there]
        return BlockSums(*chosen)

    return differences(*({scale: of(x) for scale, x in sums.items()} for sums in (a, b)))


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

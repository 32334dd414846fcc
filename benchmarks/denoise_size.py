"""Time and memory of ``vst denoise`` on slides of some size, beside a Gaussian for every gene.

The counts of P × P patches are drawn from programmes with sharp borders (9 UMIs per 2 µm bin,
18,000 genes; a full slide has 26 × 26 patches), and estimated from their number of factors to the
rates, without intervals (two fits more) and without reading a store. The simpler way chooses the
width of a Gaussian for each gene by held-out UMIs; it is timed on a few genes and multiplied.

    python benchmarks/denoise_size.py --patches 6 13 --factors 0
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np
from scipy.ndimage import gaussian_filter

from virchow_st.denoise.bootstrap import draw_counts
from virchow_st.denoise.estimate import estimate
from virchow_st.denoise.fit import smoother_of
from virchow_st.denoise.half import GAUSSIANS_UM
from virchow_st.denoise.own import column, gene_columns
from virchow_st.denoise.slide import LEAST_UMIS, SlideCounts
from virchow_st.metrics.stripes import Stripes
from virchow_st.run.panel import Panel
from virchow_st.types import PATCH_BINS

N_PROGRAMMES = 12
UMIS_PER_BIN = 9.0
N_TIMED_GENES = 12


def drawn_slide(patches: int, n_genes: int, seed: int) -> SlideCounts:
    """Counts of a square of tissue; each bin has mostly one programme."""
    rng = np.random.default_rng(seed)
    side = patches * PATCH_BINS
    weights = np.stack(
        [gaussian_filter(rng.normal(size=(side, side)), 8).ravel() for _ in range(N_PROGRAMMES)], 1
    )
    weights = np.exp(6 * weights / weights.std()).astype(np.float32)
    weights *= UMIS_PER_BIN / weights.sum(1, keepdims=True)
    loadings = rng.dirichlet(rng.lognormal(-4.0, 1.5, n_genes), N_PROGRAMMES).T
    rows = draw_counts(weights, loadings, np.ones(side**2), rng)
    assert rows.gene_totals.sum() > LEAST_UMIS
    names = tuple(f"GENE{g}" for g in range(n_genes))
    flat = Stripes(np.ones(side), np.zeros(side), 0.0)
    return SlideCounts(
        Panel(names, names), rows, np.arange(side**2), np.empty(0, np.int64),
        np.ones((side, side), bool), (0, 0), ([], []), (flat, flat),
    )  # fmt: skip


def gaussian_seconds(slide: SlideCounts) -> float:
    """Processor seconds of the best of ten Gaussians for all genes, from those of a few."""
    smoother, rng = smoother_of(slide), np.random.default_rng(0)
    genes = np.linspace(0, slide.rows.n_genes - 1, N_TIMED_GENES).astype(np.int64)
    columns = gene_columns(slide.rows, genes)
    began = time.process_time()
    for i in range(len(genes)):
        counts = column(columns, i)
        fitted = rng.binomial(counts.astype(np.int64), 0.8).astype(np.float32)
        there = np.flatnonzero(counts - fitted)
        for width_um in GAUSSIANS_UM:
            np.log(np.maximum(smoother.smoothed(fitted, width_um)[there], 1e-9)).sum()
    return (time.process_time() - began) / len(genes) * slide.rows.n_genes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patches", type=int, nargs="+", default=[6, 13])
    parser.add_argument("--genes", type=int, default=18_000)
    parser.add_argument("--factors", type=int, default=0)
    arguments = parser.parse_args()
    for patches in arguments.patches:
        slide = drawn_slide(patches, arguments.genes, 0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wall, cpu = time.monotonic(), time.process_time()
        found = estimate(slide, arguments.factors, 0)
        result = {
            "bins": len(slide.place),
            "non_zeros": len(slide.rows.gene),
            "n_factors": found.recipe.n_factors,
            "width_um": found.recipe.width_um,
            "n_own": len(found.recipe.own),
            "wall_s": round(time.monotonic() - wall),
            "cpu_s": round(time.process_time() - cpu),
            "gb_before": round(before / 1e6, 2),
            "gb_most": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
            "gaussian_of_every_gene_cpu_s": round(gaussian_seconds(slide)),
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

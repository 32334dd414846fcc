"""What ``vst evaluate`` adds to a run with factors, made for an evaluated run of a panel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from virchow_st.evaluation.all_genes import summary
from virchow_st.field.loadings import Loadings
from virchow_st.field.write import write_field
from virchow_st.metrics.factor_scores import AllGeneScores
from virchow_st.run.all_genes import NULL_SCALES_UM, AllGenesTable, write_all_genes
from virchow_st.run.maps import SlideResult, find_maps, open_maps
from virchow_st.run.panel import Panel
from virchow_st.run.results import read_metrics, write_metrics
from virchow_st.types import BLOCK_BINS, SCALES_UM

N_GENES, N_FACTORS = 40, 5
WITHOUT_UMI, WITHOUT_LOADING = 5, 3
"""Genes that no score and no map has anything of."""


@dataclass
class Added:
    """What was written: factors (K, R, C) of each slide by name, loadings (G, K) and genes."""

    maps: dict[str, np.ndarray]
    loadings: np.ndarray
    genes: Panel


def add_factors(run: Path, seed: int = 0) -> Added:
    """Add fields, ``all_genes.csv`` and ``all_genes`` of the metrics to an evaluated run."""
    rng = np.random.default_rng(seed)
    loadings = rng.gamma(0.2, 1, (N_GENES, N_FACTORS)).astype(np.float32)
    loadings[WITHOUT_LOADING] = 0
    loadings /= loadings.sum(0)
    genes, maps = None, {}
    (run / "fields").mkdir()
    for path in find_maps(run):
        with open_maps(path) as slide:
            genes = genes or _genes(slide.panel)
            maps[slide.name] = _maps(slide.scored_mask.shape, rng)
            _write(run, slide, maps[slide.name], Loadings(genes, loadings))
    assert genes is not None
    table = _table(genes, rng)
    write_all_genes(run, table)
    metrics = read_metrics(run)
    metrics["all_genes"] = summary(table, N_FACTORS, len(genes))
    write_metrics(run, metrics)
    return Added(maps, loadings, genes)


def _genes(panel: Panel) -> Panel:
    ids = [f"ENSG9{g:04d}" for g in range(N_GENES)]
    symbols = [f"SYM{g}" for g in range(N_GENES)]
    for place, gene in enumerate(panel.genes):
        ids[7 * place], symbols[7 * place] = gene.id, gene.symbol
    return Panel(tuple(ids), tuple(symbols))


def _maps(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Waves with fine noise, over two decades; one bin is left out."""
    row, col = np.mgrid[: shape[0], : shape[1]] / 40
    waves = [np.exp(2 * np.sin(row * (k + 1) / 3) + 2 * np.cos(col + k)) for k in range(N_FACTORS)]
    maps = (0.05 * np.array(waves) * rng.gamma(20, 1 / 20, (N_FACTORS, *shape))).astype(np.float32)
    maps[:, 8, 8] = np.nan
    return maps


def _write(run: Path, slide: SlideResult, maps: np.ndarray, loadings: Loadings) -> None:
    rows, cols = slide.scored_mask.shape
    blocks = (
        (row, col, maps[:, row : row + BLOCK_BINS, col : col + BLOCK_BINS])
        for row in range(0, rows, BLOCK_BINS)
        for col in range(0, cols, BLOCK_BINS)
    )
    write_field(
        run / "fields" / f"{slide.file_name}.zarr", blocks, loadings, slide.scored_mask, {},
        corner_um=(2.0 * slide.col0, 2.0 * slide.row0),
    )  # fmt: skip


def _table(genes: Panel, rng: np.random.Generator) -> AllGenesTable:
    """Scores that differ from gene to gene; abundant genes are predicted beyond chance."""
    n = len(genes)
    mean = 10 ** rng.uniform(-4, -1, n)
    mean[WITHOUT_UMI] = 0
    scores = {}
    for scale in SCALES_UM:
        at_scale = mean * (scale / 2) ** 2
        ceiling = np.where(mean > 0, np.sqrt(at_scale / (at_scale + 1)), np.nan)
        pcc = ceiling * rng.uniform(0.3, 0.9, n)
        n_nulls = 2 if scale in NULL_SCALES_UM else 0
        scores[scale] = AllGeneScores(
            scale, 4096 // scale**2, at_scale, 1 - np.exp(-at_scale), pcc, ceiling,
            rng.normal(0, 0.01, (n_nulls, n)) + 0 * pcc, pcc**2, 1 + pcc,
        )  # fmt: skip
    q_value = np.where(mean > 1e-3, 0.0001, np.where(mean > 3e-4, 0.2, np.nan))
    return AllGenesTable(genes, scores, dict.fromkeys(NULL_SCALES_UM, q_value))

"""How often the 90 % intervals of denoised cells hold the true UMIs, on simulated slides.

For each seed one slide with planted cells is simulated, extracted and denoised. Its denoised rates
are summed over the cells, over their nuclei, and over squares. Printed is the share of cells whose
true UMIs lie within `virchow_st.cell_interval`, mean over genes, in ten groups of equally many
genes from the least abundant; and the ratio of the squared errors to ``layers["variance"]``. The
true rate is taken without the stripes that the denoised field leaves out. With ``--failed`` two
rows in every 64 and a square of 48 bins are marked as failed, and cells with a bin there are
printed by themselves.

    python benchmarks/cells_intervals.py FOLDER --seeds 201 202 203 --bins 256 --genes 300
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from denoise_intervals import failed_bins

import virchow_st as vst
from virchow_st.output.cells.gather import CellData
from virchow_st.output.cells.sources import CellSource, open_cell_source
from virchow_st.output.cells.sums import map_sums
from virchow_st.output.cells.table import to_anndata
from virchow_st.runtime.progress import SILENT
from virchow_st.simulate.truth import true_rate
from virchow_st.slide.cells.assign import from_labels
from virchow_st.slide.cells.cell_map import CellMap
from virchow_st.slide.cells.geojson import CELLS, NUCLEI
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.cells.read import read_cells
from virchow_st.types import BIN_UM, Array

PATIENT = "P5"
SQUARES_UM = 8, 16, 32, 64


def measure(
    folder: Path, config: vst.SimulateConfig, with_failed: bool
) -> dict[str, dict[str, Any]]:
    """Simulate, extract and denoise one slide, and compare the intervals with the truth."""
    vst.simulate_cohort(folder, config)
    extract = vst.ExtractConfig("stain", device="cpu", lattice="best")
    for _ in vst.extract_cohort(folder / "slides.csv", extract, SILENT):
        pass
    path, failed = folder / ("filled.zarr" if with_failed else "denoised.zarr"), None
    if with_failed:
        failed = folder / "failed.png"
        cv2.imwrite(str(failed), failed_bins(config.bins))
    if not path.exists():
        vst.denoise_store(folder / f"{PATIENT}.vst", path, failed=failed)
    outs = folder / PATIENT / "outs"
    found = {}
    with open_cell_source(path) as source:
        truth = true_rates(folder, source)
        areas = {want: read_cells(outs, source.lattice, want=want) for want in (CELLS, NUCLEI)}
        areas |= {f"{um} µm": squares(source.lattice, um // BIN_UM) for um in SQUARES_UM}
        for name, cells in areas.items():
            found[name] = shares(source, cells, truth, False)
            if with_failed:
                found[f"{name}, filled"] = shares(source, cells, truth, True)
    return found


def true_rates(folder: Path, source: CellSource) -> Array:
    """(G, R · C) true rates of the field's genes, without its stripes."""
    assert source.field is not None
    field, lattice = source.field, source.lattice
    lines = [field.provenance["exposure"][name]["efficiency"] for name in ("rows", "cols")]
    exposure = np.outer(
        *(np.ones(n) if x is None else x for x, n in zip(lines, field.shape, strict=True))
    )
    at = lattice.row0, lattice.col0, *lattice.shape
    rates = true_rate(folder / PATIENT / "truth.h5", list(field.genes), *at) / exposure
    return rates.reshape(len(field.genes), -1).astype(np.float32)


def squares(lattice: Lattice, side: int) -> CellMap:
    """All squares of so many bins that are tissue as a whole."""
    rows, cols = (n // side for n in lattice.shape)
    whole = lattice.tissue[: rows * side, : cols * side]
    inside = whole.reshape(rows, side, cols, side).all(axis=(1, 3))
    number = np.where(inside, inside.cumsum().reshape(inside.shape), 0).astype(np.int32)
    labels = np.zeros(lattice.shape, np.int32)
    labels[: rows * side, : cols * side] = number.repeat(side, axis=0).repeat(side, axis=1)
    return from_labels(labels, lattice, tuple(map(str, range(1, 1 + int(inside.sum())))))


def shares(source: CellSource, cells: CellMap, truth: Array, is_filled: bool) -> dict[str, Any]:
    """Share of cells within bounds and mean of error² over variance, by tenth of the genes.

    Of the cells that have a filled bin, or of those that have none.
    """
    every = np.arange(len(source.genes))
    loadings = source.loadings
    assert loadings is not None
    sums = map_sums(source.rate_blocks(every), cells, loadings.shape[1])
    data = CellData(
        cells, source.genes, sums, loadings, None, None, None, errors=source.errors(every)
    )
    adata = to_anndata(source, data, {})
    true = cells.matrix() @ truth.T
    filled = np.asarray(adata.obs["filled"]) if "filled" in adata.obs else np.zeros(len(cells))
    inner = np.asarray((adata.obs["covered"] == 1) & (adata.obs["tissue"] > 0))
    inner &= (filled > 0) == is_filled
    bounds = (vst.cell_interval(adata, gene) for gene in source.genes.ids)
    within = [
        float(((low <= y) & (y <= high))[inner].mean())
        for (low, high), y in zip(bounds, true.T, strict=True)
    ]
    error = np.square(np.asarray(adata.X) - true)[inner]
    squared = error.sum(axis=0) / adata.layers["variance"][inner].sum(axis=0)
    tenths = np.array_split(np.argsort(true[inner].mean(axis=0)), 10)
    return {
        "n": int(inner.sum()),
        "bins": float(np.median(adata.obs["bins"][inner])),
        "filled": round(float(filled[inner].mean()), 3),
        "within": [round(float(np.mean([within[g] for g in of])), 3) for of in tenths],
        "mean": round(float(np.mean(within)), 3),
        "error² over variance": [round(float(squared[of].mean()), 2) for of in tenths],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[201, 202, 203])
    parser.add_argument("--bins", type=int, default=384)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--hidden-variation", type=float, default=0.0)
    parser.add_argument("--failed", action="store_true", help="mark bins as failed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {}
    for seed in options.seeds:
        config = vst.SimulateConfig(
            patients=(PATIENT,), seed=seed, bins=options.bins, genes=options.genes, cells=True,
            hidden_variation=options.hidden_variation,
        )  # fmt: skip
        folder = options.folder / f"seed-{seed}-{options.hidden_variation:g}"
        found = measure(folder, config, options.failed)
        results[seed] = found
        for name, of in found.items():
            print(seed, name, json.dumps(of, ensure_ascii=False), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

"""How near the expression of single cells comes to the truth: counts, denoised, and predicted.

For each seed three patients are simulated with planted cells and extracted. A decoder of all genes
is trained on two of them and predicts the third; the third is also denoised from its own counts.
Counts, denoised rates and predicted rates are summed over its cells (`virchow_st.cell_table`).
Printed is the mean PCC over cells with each gene's true rate, by tenth of the genes' abundance.

The same is done for squares of 8 µm: counts and denoised rates per bin of 64 µm².

    python benchmarks/cells_truth.py FOLDER --seeds 211 212 213 --json cells_truth.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import virchow_st as vst
from virchow_st.kernels.pooling import pool_mask
from virchow_st.output.cells.sums import count_sums
from virchow_st.runtime.progress import SILENT
from virchow_st.simulate.truth import true_rate
from virchow_st.slide.cells.assign import from_labels
from virchow_st.slide.cells.cell_map import CellMap
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.cells.read import read_cells
from virchow_st.slide.geometry import Homography
from virchow_st.types import CELL_BINS, PATCH_BINS, Array

TRAINING, TEST = ("P1", "P2"), "P5"
WAYS = ("counts", "denoised", "predicted")


def measure(
    folder: Path, seed: int, bins: int, genes: int, decoder: str, epochs: int, hidden: float
) -> dict[str, Any]:
    """Simulate, train, predict and denoise, and compare the cells of the test slide."""
    slides = folder / f"seed-{seed}"
    patients = (*TRAINING, TEST)
    config = vst.SimulateConfig(
        patients=patients, bins=bins, genes=genes, seed=seed, cells=True, hidden_variation=hidden
    )
    vst.simulate_cohort(slides, config)
    extract = vst.ExtractConfig("stain", device="cpu", lattice="best")
    for _ in vst.extract_cohort(slides / "slides.csv", extract, SILENT):
        pass
    stores = {name: slides / f"{name}.vst" for name in patients}
    run, field = slides / "run", slides / "denoised.zarr"
    if not run.exists():
        paths = tuple(str(path.resolve()) for path in stores.values())
        recipe = vst.TrainConfig(
            paths, TEST, panel="all", decoder=decoder, epochs=epochs, device="cpu"
        )
        vst.train(run, recipe)
        vst.evaluate_run(run, device="cpu")
    if not field.exists():
        vst.denoise_store(stores[TEST], field)
    outs = slides / TEST / "outs"
    denoised = vst.cell_table(field, outs, store=stores[TEST])
    predicted = vst.cell_table(run, outs)
    ids = [g for g in denoised.var["gene_id"] if g in set(predicted.var["gene_id"])]
    tables = [t[:, [list(t.var["gene_id"]).index(g) for g in ids]] for t in (denoised, predicted)]
    names = [name for name in denoised.obs_names if name in set(predicted.obs_names)]
    tables = [table[names] for table in tables]
    truth = true_rates(slides, stores[TEST], ids, names)
    inner = np.asarray(tables[0].obs["covered"] == 1)
    of_way = dict(
        zip(WAYS, (tables[0].layers["observed"].toarray(), tables[0].X, tables[1].X), strict=True)
    )
    scores = {way: pcc(np.asarray(x)[inner], truth[inner]) for way, x in of_way.items()}
    umis = of_way["counts"][inner].mean(axis=0)
    tenths = np.array_split(np.argsort(umis), 10)
    fields = {"denoised": vst.open_field(field), "predicted": run_field(run)}
    scores |= {f"{way} 8 µm": s for way, s in of_squares(slides, stores[TEST], ids, fields).items()}
    return {
        "seed": seed,
        "hidden_variation": hidden,
        "decoder": decoder,
        "epochs": epochs,
        "cells": int(inner.sum()),
        "genes": len(ids),
        "umis_per_cell": [round(float(umis[t].mean()), 4) for t in tenths],
        **{w: [round(float(np.nanmean(s[t])), 3) for t in tenths] for w, s in scores.items()},
        "all": {w: round(float(np.nanmean(s)), 3) for w, s in scores.items()},
    }


def run_field(run: Path) -> vst.Field:
    """The predicted field of the run's only test slide."""
    (path,) = (run / "fields").glob("*.zarr")
    return vst.open_field(path)


def of_squares(
    slides: Path, path: Path, ids: list[str], fields: dict[str, vst.Field]
) -> dict[str, Array]:
    """PCC with the true rate over squares of 8 µm, in which all is tissue and predicted, (G,)."""
    store = vst.open_store(path)
    lattice = lattice_of(store)
    rows, cols = (n // CELL_BINS for n in lattice.shape)
    number = np.arange(1, 1 + rows * cols, dtype=np.int32).reshape(rows, cols)
    labels = number.repeat(CELL_BINS, axis=0).repeat(CELL_BINS, axis=1)
    squares = from_labels(labels, lattice, tuple(map(str, number.ravel())))
    known = np.logical_and.reduce(
        [pool_mask(f.tissue_mask & f.covered, CELL_BINS) for f in fields.values()]
    )
    place = {gene: i for i, gene in enumerate(store.genes.ids)}
    counts = count_sums(store, squares, np.array([place[g] for g in ids]), SILENT)
    inside = known.ravel()
    truth = true_sums(slides, squares, ids)[inside]
    found = {"counts": pcc(counts.of_cells.toarray()[inside], truth)}
    for way, field in fields.items():
        rates = field.factors(scale_um=8)[:, known].T @ field.loadings[field.index(ids)].T
        found[way] = pcc(rates, truth)
    return found


def lattice_of(store: vst.Store) -> Lattice:
    """The bins of a store's patches, all of them as tissue."""
    infos = store.patch_table
    row0, col0 = min(i.row0 for i in infos), min(i.col0 for i in infos)
    rows = max(i.row0 for i in infos) + PATCH_BINS - row0
    cols = max(i.col0 for i in infos) + PATCH_BINS - col0
    homography = Homography(np.array(store.manifest["homography"]))
    return Lattice(TEST, homography, row0, col0, np.ones((rows, cols), bool))


def true_rates(slides: Path, path: Path, ids: list[str], names: list[str]) -> Array:
    """True UMIs of cells, (n, G), over the bins of the store's patches."""
    cells = read_cells(slides / TEST / "outs", lattice_of(vst.open_store(path)))
    number = {name: i for i, name in enumerate(cells.ids)}
    return true_sums(slides, cells, ids)[[number[name] for name in names]]


def true_sums(slides: Path, cells: CellMap, ids: list[str]) -> Array:
    """True UMIs of every cell of a map, (n, G)."""
    lattice, shares = cells.lattice, cells.matrix()
    at = lattice.row0, lattice.col0, *lattice.shape
    truth = slides / TEST / "truth.h5"
    parts = [
        shares @ true_rate(truth, ids[g : g + 20], *at).reshape(-1, shares.shape[1]).T
        for g in range(0, len(ids), 20)
    ]
    return np.concatenate(parts, axis=1)


def pcc(x: Array, y: Array) -> Array:
    """Pearson's r over rows, of each column."""
    x, y = (np.asarray(of, np.float64) - np.mean(of, axis=0) for of in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(axis=0) / np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--bins", type=int, default=384)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--decoder", default="fusion")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--hidden-variation", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = []
    sizes = options.bins, options.genes, options.decoder, options.epochs
    for seed in options.seeds:
        found.append(measure(options.folder, seed, *sizes, options.hidden_variation))
        print(json.dumps(found[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

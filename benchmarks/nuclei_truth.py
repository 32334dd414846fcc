"""How well a segmenter finds the planted nuclei of simulated slides.

Compared on the 2 µm bins of three patients per seed: the area of all nuclei (Dice), and single
nuclei, matched where their bins agree by an intersection over union of at least 0.5.

    python benchmarks/nuclei_truth.py FOLDER --seeds 211 [--segmenter nuclei] [--bins 256]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import virchow_st as vst
from virchow_st.slide.cells.cell_map import CellMap
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.cells.read import read_cells
from virchow_st.slide.cells.segment import segment_cells
from virchow_st.slide.visium_hd import VisiumHDSlide


def scores(planted: CellMap, found: CellMap) -> dict[str, float]:
    """Dice of the areas; recall, precision and F1 of single nuclei."""
    a, b = planted.labels, found.labels
    both = (a > 0) & (b > 0)
    pairs, n = np.unique(np.stack([a[both], b[both]], axis=1), axis=0, return_counts=True)
    sizes = planted.n_bins[pairs[:, 0] - 1], found.n_bins[pairs[:, 1] - 1]
    n_matched = int((n / (sizes[0] + sizes[1] - n) >= 0.5).sum())
    return {
        "planted": len(planted),
        "found": len(found),
        "dice": 2 * both.sum() / ((a > 0).sum() + (b > 0).sum()),
        "recall": n_matched / len(planted),
        "precision": n_matched / len(found),
        "f1": 2 * n_matched / (len(planted) + len(found)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--segmenter", default="nuclei")
    parser.add_argument("--bins", type=int, default=256)
    options = parser.parse_args()
    for seed in options.seeds:
        slides = options.folder / f"seed-{seed}"
        config = vst.SimulateConfig(bins=options.bins, genes=60, seed=seed, cells=True)
        vst.simulate_cohort(slides, config)
        for patient in config.patients:
            outs = slides / patient / "outs"
            homography = VisiumHDSlide.open(outs).homography
            tissue = np.ones((options.bins, options.bins), bool)
            lattice = Lattice(patient, homography, 0, 0, tissue)
            planted = read_cells(outs, lattice, want="nuclei")
            image = slides / patient / "tissue_image.tif"
            found, _ = segment_cells(options.segmenter, image, lattice)
            texts = (f"{name} {value:.3g}" for name, value in scores(planted, found).items())
            print(seed, patient, *texts, flush=True)


if __name__ == "__main__":
    main()

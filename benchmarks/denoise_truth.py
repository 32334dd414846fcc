"""How near ``vst denoise`` comes to the true rates of simulated slides, beside the best Gaussian.

For each seed the test patient of ``vst simulate`` is simulated, extracted and denoised. Printed is
the mean PCC with the true rate over the 50 most variable genes, at four scales, of the counts as
they are, of each gene's best Gaussian, and of the denoised rates. The width of the Gaussian is
chosen by the truth, for each gene and scale, so that it is flattered.

    python benchmarks/denoise_truth.py FOLDER --seeds 131 132 133 --json denoise_truth.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

import virchow_st as vst
from virchow_st.kernels.pooling import pool_mask, sum_pool
from virchow_st.run.panel import choose_panel
from virchow_st.runtime.progress import SILENT
from virchow_st.simulate.truth import true_rate
from virchow_st.store.reader import Store
from virchow_st.types import BIN_UM, PATCH_BINS, SCALES_UM, BoolArray, Float32Array

PATIENT = "P5"
WIDTHS_UM = (2, 4, 6, 8, 12, 16, 24)


def measure(folder: Path, seed: int) -> dict[str, Any]:
    """Simulate, extract and denoise one slide, and compare with its truth."""
    slides = folder / f"seed-{seed}"
    vst.simulate_cohort(slides, vst.SimulateConfig(patients=(PATIENT,), seed=seed))
    for _ in vst.extract_cohort(
        slides / "slides.csv", vst.ExtractConfig("stain", device="cpu"), SILENT
    ):
        pass
    store = vst.open_store(slides / f"{PATIENT}.vst")
    out = slides / "denoised.zarr"
    if not out.exists():
        vst.denoise_store(store.path, out)
    field, panel = vst.open_field(out), choose_panel("top50", [store])
    counts, mask = maps_of(store, panel.indices(store))
    rows, cols = mask.shape
    corner = min(i.row0 for i in store.patch_table), min(i.col0 for i in store.patch_table)
    found: dict[str, dict[str, list[float]]] = {
        way: {str(scale): [] for scale in SCALES_UM} for way in ("raw", "gaussian", "denoised")
    }
    truth = true_rate(slides / PATIENT / "truth.h5", panel.ids, *corner, rows, cols)
    weight = mask.astype(np.float32)
    lines = [field.provenance["exposure"][name]["efficiency"] for name in ("rows", "cols")]
    exposure = np.outer(
        *(np.ones(n) if x is None else x[:n] for x, n in zip(lines, mask.shape, strict=True))
    )  # the truth holds the stripes, which the field leaves out
    for g, gene in enumerate(panel.ids):
        smooth = [gaussian(counts[g], weight, width / BIN_UM) for width in WIDTHS_UM]
        denoised = np.nan_to_num(field.gene(gene)[:rows, :cols]) * exposure
        for scale in SCALES_UM:
            r = [pcc(x, truth[g], mask, scale) for x in (counts[g], denoised, *smooth)]
            for way, value in zip(found, (r[0], max(r[2:]), r[1]), strict=True):
                found[way][str(scale)].append(value)
    means = {w: {s: round(float(np.mean(v)), 4) for s, v in f.items()} for w, f in found.items()}
    return {"seed": seed, **means}


def maps_of(store: Store, genes: Any) -> tuple[Float32Array, BoolArray]:
    """Counts (G, R, C) of the store's patches on their lattice, and where there is tissue."""
    infos = store.patch_table
    row0, col0 = min(i.row0 for i in infos), min(i.col0 for i in infos)
    shape = (max(i.row0 for i in infos) - row0 + PATCH_BINS,
             max(i.col0 for i in infos) - col0 + PATCH_BINS)  # fmt: skip
    counts, mask = np.zeros((len(genes), *shape), np.float32), np.zeros(shape, bool)
    for patch in store:
        rows = slice(patch.info.row0 - row0, patch.info.row0 - row0 + PATCH_BINS)
        cols = slice(patch.info.col0 - col0, patch.info.col0 - col0 + PATCH_BINS)
        counts[:, rows, cols] = patch.dense_counts(genes) * patch.tissue_mask
        mask[rows, cols] = patch.tissue_mask
    return counts, mask


def gaussian(counts: Float32Array, weight: Float32Array, sigma: float) -> Float32Array:
    """Counts smoothed within the tissue."""
    total = gaussian_filter(counts, sigma, mode="constant")
    return total / np.maximum(gaussian_filter(weight, sigma, mode="constant"), 1e-6)


def pcc(estimate: Float32Array, truth: Float32Array, mask: BoolArray, scale_um: int) -> float:
    """Pearson's r over bins of a scale that are all tissue."""
    factor = scale_um // BIN_UM
    whole = pool_mask(mask, factor)
    x, y = (
        sum_pool(np.ascontiguousarray(m[None], np.float32), factor)[0][whole]
        for m in (estimate, truth)
    )
    return float(np.corrcoef(x, y)[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[131, 132, 133])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = [measure(arguments.folder, seed) for seed in arguments.seeds]
    for result in results:
        print(json.dumps(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

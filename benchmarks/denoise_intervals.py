"""How often the 90 % intervals of ``vst denoise`` hold the true rate, on simulated slides.

For each seed the test patient of ``vst simulate`` is simulated, extracted and denoised. Printed is
the share of bins whose true rate lies within the interval, mean over genes, in ten groups of
equally many genes from the least abundant, at 2 and 8 µm. The true rate is taken without the
stripes that the denoised field leaves out.

    python benchmarks/denoise_intervals.py FOLDER --seeds 201 202 203 --bins 384
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import virchow_st as vst
from virchow_st.kernels.pooling import pool_mask, sum_pool
from virchow_st.runtime.progress import SILENT
from virchow_st.simulate.truth import true_rate
from virchow_st.types import BIN_UM

PATIENT = "P5"
SCALES_UM = 2, 8


def measure(folder: Path, config: vst.SimulateConfig, per_group: int) -> dict[str, list[float]]:
    """Simulate, extract and denoise one slide, and compare its intervals with its truth."""
    vst.simulate_cohort(folder, config)
    for _ in vst.extract_cohort(
        folder / "slides.csv", vst.ExtractConfig("stain", device="cpu"), SILENT
    ):
        pass
    out = folder / "denoised.zarr"
    if not out.exists():
        vst.denoise_store(folder / f"{PATIENT}.vst", out)
    field = vst.open_field(out)
    col0, row0 = (int(x / BIN_UM) for x in field.corner_um)
    rows, cols = field.shape
    lines = [field.provenance["exposure"][name]["efficiency"] for name in ("rows", "cols")]
    exposure = np.outer(
        *(np.ones(n) if x is None else x for x, n in zip(lines, field.shape, strict=True))
    )
    umis = field.loadings @ np.nansum(field.factors(scale_um=8), axis=(1, 2))
    found: dict[str, list[float]] = {f"{scale} µm": [] for scale in SCALES_UM}
    for group in np.array_split(np.argsort(umis), 10):
        inside: dict[int, list[float]] = {scale: [] for scale in SCALES_UM}
        for g in group[np.linspace(0, len(group) - 1, min(per_group, len(group))).astype(int)]:
            gene = field.genes[g]
            truth = true_rate(folder / PATIENT / "truth.h5", [gene], row0, col0, rows, cols)[0]
            truth = (truth / exposure).astype(np.float32)
            for scale in SCALES_UM:
                factor = scale // BIN_UM
                true, mask = sum_pool(truth[None], factor)[0], pool_mask(field.tissue_mask, factor)
                low, high = field.interval(gene, scale)
                inside[scale].append(float(((low <= true) & (true <= high))[mask].mean()))
        for scale in SCALES_UM:
            found[f"{scale} µm"].append(round(float(np.mean(inside[scale])), 3))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[201, 202, 203])
    parser.add_argument("--bins", type=int, default=640)
    parser.add_argument("--hidden-variation", type=float, default=0.0)
    parser.add_argument("--genes-per-group", type=int, default=25)
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        config = vst.SimulateConfig(
            patients=(PATIENT,), seed=seed, bins=arguments.bins,
            hidden_variation=arguments.hidden_variation,
        )  # fmt: skip
        folder = arguments.folder / f"seed-{seed}-{arguments.hidden_variation:g}"
        found = measure(folder, config, arguments.genes_per_group)
        print(seed, json.dumps(found, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()

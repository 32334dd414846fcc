"""How often the 90 % intervals of ``vst denoise`` hold the true rate, on simulated slides.

For each seed the test patient of ``vst simulate`` is simulated, extracted and denoised. Printed is
the share of bins whose true rate lies within the interval, mean over genes, in ten groups of
equally many genes from the least abundant, at 2 and 8 µm. The true rate is taken without the
stripes that the denoised field leaves out. With ``--failed`` two rows in every 64 and a square of
48 bins are marked as failed, and the share in these bins is printed by itself.

    python benchmarks/denoise_intervals.py FOLDER --seeds 201 202 203 --bins 384
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

import virchow_st as vst
from virchow_st.kernels.pooling import pool_mask, sum_pool
from virchow_st.runtime.progress import SILENT
from virchow_st.simulate.truth import true_rate
from virchow_st.types import BIN_UM, UInt8Array

PATIENT = "P5"
SCALES_UM = 2, 8


def measure(
    folder: Path, config: vst.SimulateConfig, per_group: int, with_failed: bool
) -> dict[str, list[float]]:
    """Simulate, extract and denoise one slide, and compare its intervals with its truth."""
    vst.simulate_cohort(folder, config)
    for _ in vst.extract_cohort(
        folder / "slides.csv", vst.ExtractConfig("stain", device="cpu"), SILENT
    ):
        pass
    out, failed = folder / ("filled.zarr" if with_failed else "denoised.zarr"), None
    if with_failed:
        failed = folder / "failed.png"
        cv2.imwrite(str(failed), failed_bins(config.bins))
    if not out.exists():
        vst.denoise_store(folder / f"{PATIENT}.vst", out, failed=failed)
    field = vst.open_field(out)
    col0, row0 = (int(x / BIN_UM) for x in field.corner_um)
    rows, cols = field.shape
    lines = [field.provenance["exposure"][name]["efficiency"] for name in ("rows", "cols")]
    exposure = np.outer(
        *(np.ones(n) if x is None else x for x, n in zip(lines, field.shape, strict=True))
    )
    umis = field.loadings @ np.nansum(field.factors(scale_um=8), axis=(1, 2))
    parts = {f"{scale} µm": (scale, False) for scale in SCALES_UM}
    if with_failed:
        parts |= {f"{scale} µm, filled": (scale, True) for scale in SCALES_UM}
    found: dict[str, list[float]] = {part: [] for part in parts}
    for group in np.array_split(np.argsort(umis), 10):
        inside: dict[str, list[float]] = {part: [] for part in parts}
        for g in group[np.linspace(0, len(group) - 1, min(per_group, len(group))).astype(int)]:
            gene = field.genes[g]
            truth = true_rate(folder / PATIENT / "truth.h5", [gene], row0, col0, rows, cols)[0]
            truth = (truth / exposure).astype(np.float32)
            for part, (scale, is_filled) in parts.items():
                factor = scale // BIN_UM
                true, mask = sum_pool(truth[None], factor)[0], pool_mask(field.tissue_mask, factor)
                filled = sum_pool(field.failed[None].astype(np.float32), factor)[0] > 0
                low, high = field.interval(gene, scale)
                chosen = mask & (filled == is_filled)
                inside[part].append(float(((low <= true) & (true <= high))[chosen].mean()))
        for part, shares in inside.items():
            found[part].append(round(float(np.mean(shares)), 3))
    return found


def failed_bins(bins: int) -> UInt8Array:
    """Two rows in every 64, and a square in the middle, as ``--failed`` of the command takes it."""
    mask = np.zeros((bins, bins), np.uint8)
    mask[30::64] = mask[31::64] = 255
    start = bins // 2 - 24
    mask[start : start + 48, start : start + 48] = 255
    return mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[201, 202, 203])
    parser.add_argument("--bins", type=int, default=640)
    parser.add_argument("--hidden-variation", type=float, default=0.0)
    parser.add_argument("--genes-per-group", type=int, default=25)
    parser.add_argument("--failed", action="store_true", help="mark bins as failed")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        config = vst.SimulateConfig(
            patients=(PATIENT,), seed=seed, bins=arguments.bins,
            hidden_variation=arguments.hidden_variation,
        )  # fmt: skip
        folder = arguments.folder / f"seed-{seed}-{arguments.hidden_variation:g}"
        found = measure(folder, config, arguments.genes_per_group, arguments.failed)
        print(seed, json.dumps(found, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()

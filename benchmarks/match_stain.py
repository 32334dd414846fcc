"""What ``--match-stain`` changes on a slide that a run was not trained on.

    python benchmarks/match_stain.py RUN OUTS IMAGE [--planted 0.7,1.4 ...] --json stain.json

The slide is extracted as it is and with stains matched to the run's training, and predicted by the
patches of both stores; the counts score both. ``--planted H,E`` multiplies the slide's haematoxylin
and eosin before, and ``--planted H,E,R,G,B`` raises the light of red, green and blue to powers
besides (a scanner's colours), which makes slides of laboratories further away.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import tifffile
from report import Table, publish

import virchow_st as vst
from virchow_st.kernels.pooling import pool_mask, sum_pool
from virchow_st.metrics.correlation import SY, N, moments, pearson_from_moments
from virchow_st.metrics.deviance import (
    constant_deviance,
    deviance_explained,
    poisson_deviance,
    poisson_sums,
)
from virchow_st.models.encoders.stain import STAINS
from virchow_st.slide.image import SlideImage
from virchow_st.slide.restain import Restain

FACTORS = (1, 4)  # 2 and 8 µm
COLUMNS = (
    "slide", "stains × (H, E)", "2 µm: PCC", "D²", "8 µm: PCC", "D² ", "Σ predicted / Σ observed",
)  # fmt: skip


def scores(run: vst.Run, store: vst.Store) -> list[float]:
    """PCC and D² at 2 and at 8 µm, means over the panel, and the ratio of sums."""
    genes = run.panel.indices(store)
    sums = [np.zeros((len(genes), 4)) for _ in FACTORS]
    totals = [np.zeros((len(genes), 6)) for _ in FACTORS]
    for patch, rates in zip(store, run.predict_store(store), strict=True):
        counts = patch.dense_counts(genes)
        mask = patch.tissue_mask & ~np.isnan(rates[0])
        rates = np.where(mask, rates, 0)
        for i, factor in enumerate(FACTORS):
            rate, count = sum_pool(rates, factor), sum_pool(counts, factor)
            whole = pool_mask(mask, factor)
            totals[i] += moments(rate, count, whole)
            sums[i] += poisson_sums(rate, count, whole)
    found: list[float] = []
    for of_scale, total in zip(sums, totals, strict=True):
        umis, n = total[:, SY], total[:, N]
        null = constant_deviance(of_scale, umis, n, umis / n)
        explained = deviance_explained(poisson_deviance(of_scale, umis), null)
        found += [float(np.nanmean(pearson_from_moments(total))), float(np.nanmean(explained))]
    return [*found, float(totals[0][:, 1].sum() / totals[0][:, SY].sum())]


def planted(image: Path, out: Path, spec: str) -> None:
    """Write the image with other stains, and other colours if ``spec`` has powers."""
    haematoxylin, eosin, *powers = map(float, spec.split(","))
    with SlideImage.open(image) as slide:
        rgb, _, _ = slide.read_region(0, 0, slide.width, slide.height, 1)
    rgb = Restain(haematoxylin, eosin, STAINS)(rgb)
    if powers:
        rgb = np.rint(255 * (rgb / 255.0) ** np.array(powers)).astype(np.uint8)
    tifffile.imwrite(out, rgb, tile=(256, 256), photometric="rgb", bigtiff=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("outs", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--planted", nargs="*", default=[], metavar="H,E[,R,G,B]")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    run = vst.load_run(options.run, device="cpu")
    encoder = run.state["encoder"]["name"]
    rows: list[list[object]] = []
    for spec in ("", *options.planted):
        with tempfile.TemporaryDirectory() as scratch:
            image, folder = options.image, Path(scratch)
            if spec:
                image = folder / "planted.tif"
                planted(options.image, image, spec)
            for match in ("", str(options.run)):
                config = vst.ExtractConfig(encoder, device="cpu", match_stain=match)
                path = folder / f"{'matched' if match else 'plain'}.vst"
                store = vst.extract_slide(options.outs, image, path, "test", config)
                factors = store.manifest["job"].get("stain_factors", {})
                told = ", ".join(f"{factor:.2f}" for factor in factors.values())
                row = [f"planted {spec}" if spec else "as it is", told or "–", *scores(run, store)]
                print(*row, flush=True)
                rows.append(row)
    publish("stain", [Table(f"Stains matched: {options.run.name}", COLUMNS, rows)], options.json)


if __name__ == "__main__":
    main()

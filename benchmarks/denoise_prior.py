"""What H&E adds to ``vst denoise`` at several depths, on simulated slides.

For each seed three patients are simulated and extracted, a run is trained on two of them, and the
third is denoised with all of its UMIs and with parts of them, drawn at random: from the counts
alone, with the run as prior, and with its maps moved to other bins, which do not fit. Printed is
the mean PCC with the true rate over the 50 most abundant genes at 2 and 8 µm, the mean weight of
the prior, and what the rates rest on.

    python benchmarks/denoise_prior.py FOLDER --seeds 201 202 203 --bins 384 --epochs 6
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import virchow_st as vst
from virchow_st.denoise.estimate import estimate
from virchow_st.denoise.prior import Prior
from virchow_st.denoise.run_prior import load_other, predict_prior
from virchow_st.denoise.slide import SlideCounts, read_slide
from virchow_st.kernels.pooling import pool_mask, sum_pool
from virchow_st.run.folder import is_begun
from virchow_st.runtime.progress import SILENT
from virchow_st.simulate.truth import true_rate
from virchow_st.training.train import train
from virchow_st.types import BIN_UM, Float32Array

TEST = "P5"
SHARES = 1.0, 1 / 4, 1 / 16
SCALES_UM = 2, 8
N_GENES = 50


def measure(folder: Path, config: vst.SimulateConfig, epochs: int) -> list[dict[str, Any]]:
    """Simulate, extract, train and denoise one cohort."""
    vst.simulate_cohort(folder, config)
    for _ in vst.extract_cohort(
        folder / "slides.csv", vst.ExtractConfig("stain", device="cpu"), SILENT
    ):
        pass
    stores = tuple(str((folder / f"{p}.vst").resolve()) for p in config.patients)
    run = folder / "run"
    if not (run / "best_metrics.json").is_file():
        given = vst.TrainConfig(
            stores=stores, test_patient=TEST, panel="all", epochs=epochs, device="cpu"
        )
        train(run, given, resume=is_begun(run), progress=SILENT)
    store = vst.open_store(folder / f"{TEST}.vst")
    whole = read_slide(store)
    prior = predict_prior([load_other(run, store)], store, whole, np.zeros(len(store), int))
    moved = np.roll(np.random.default_rng(0).permutation(len(prior.maps)), 1)
    priors: dict[str, Prior | None] = {
        "counts alone": None, "H&E": prior, "H&E moved": replace(prior, maps=prior.maps[moved])
    }  # fmt: skip
    genes = np.argsort(-whole.rows.gene_totals)[:N_GENES]
    ids = [whole.panel.ids[g] for g in genes]
    window = *whole.corner, *whole.tissue.shape
    truth = true_rate(folder / TEST / "truth.h5", ids, *window).reshape(len(ids), -1)
    found = [{"way": "H&E alone"} | _scores(whole, prior.maps, prior.loadings[0][genes], truth)]
    for share in SHARES:
        slide = whole
        if share < 1:
            rows, _ = whole.rows.thinned(share, np.random.default_rng(1))
            slide = whole.with_rows(replace(rows, exposure=whole.rows.exposure))
        for way, given_prior in priors.items():
            done = estimate(slide, 0, 0, prior=given_prior)
            weights = done.recipe.weights
            scores = _scores(whole, done.rates.factors, done.rates.loadings[genes], truth)
            mean = 0.0 if weights is None else float(weights.beta.mean())
            assert done.rates.sources is not None
            sources = {
                f"{name}, {um} µm": round(of, 3)
                for um, shares in done.rates.sources.means().items() for name, of in shares.items()
            }  # fmt: skip
            found.append(
                {"share": share, "way": way, "weight": round(mean, 2)} | scores | sources
                | {"n_factors": done.recipe.n_factors, "width_um": done.recipe.width_um}
            )  # fmt: skip
            print(json.dumps(found[-1], ensure_ascii=False), flush=True)
    return found


def _scores(
    slide: SlideCounts, factors: Float32Array, loadings: Any, truth: Float32Array
) -> dict[str, float]:
    """Mean PCC with the truth, which contains the slide's stripes."""
    values: dict[int, list[float]] = {scale: [] for scale in SCALES_UM}
    for weights, true in zip(loadings, truth, strict=True):
        grid = np.zeros(slide.tissue.size, np.float32)
        grid[slide.place] = (factors @ weights.astype(np.float32)) * slide.rows.exposure
        for scale in SCALES_UM:
            factor = scale // BIN_UM
            mask = pool_mask(slide.tissue, factor)
            x, y = (
                sum_pool(m.reshape(1, *slide.tissue.shape), factor)[0][mask] for m in (grid, true)
            )
            values[scale].append(float(np.corrcoef(x, y)[0, 1]))
    return {f"{scale} µm": round(float(np.mean(r)), 4) for scale, r in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[201, 202, 203])
    parser.add_argument("--bins", type=int, default=384)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--hidden-variation", type=float, default=0.0)
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        print(f"seed {seed}", flush=True)
        config = vst.SimulateConfig(
            seed=seed, bins=arguments.bins, hidden_variation=arguments.hidden_variation
        )
        folder = arguments.folder / f"seed-{seed}-{arguments.hidden_variation:g}"
        for row in measure(folder, config, arguments.epochs)[:1]:
            print(json.dumps(row, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()

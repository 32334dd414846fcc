"""How near ``vst denoise`` comes to the true rates of simulated slides, beside simpler ways.

For each seed a cohort of ``vst simulate`` is extracted and its last patient denoised. For every
way the PCC of the estimated with the true rate is printed at four scales, the mean over the 50 most
variable genes, and by tenth of the genes by abundance; and D² on UMIs that are drawn anew from the
true rates, beside that of the true rates themselves. Each gene's Gaussian is the one whose width is
best by the truth, for each scale, so that it is flattered.

``--run`` adds H&E as prior by a run on the other patients (plain ``vst train``), and
``--leave-blocks-out N`` by decoders of the slide's own blocks.

    python benchmarks/denoise_truth.py FOLDER --seeds 131 132 133 --json denoise_truth.json
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import virchow_st as vst
from virchow_st.config import DenoiseConfig
from virchow_st.denoise.estimate import estimate
from virchow_st.denoise.fit import Rates, smoother_of
from virchow_st.denoise.folds import train_folds
from virchow_st.denoise.half import GAUSSIANS_UM
from virchow_st.denoise.own import column, gene_columns
from virchow_st.denoise.prior import Prior
from virchow_st.denoise.run_prior import load_other, predict_prior
from virchow_st.denoise.score import N_PER_DECILE
from virchow_st.denoise.slide import SlideCounts, read_slide
from virchow_st.kernels.pooling import pool_mask, sum_pool
from virchow_st.metrics.deviance import (
    constant_deviance,
    deviance_explained,
    poisson_deviance,
    poisson_sums,
)
from virchow_st.metrics.discovery import N_GROUPS, by_decile
from virchow_st.run.folder import is_begun
from virchow_st.run.panel import choose_panel
from virchow_st.runtime.progress import SILENT
from virchow_st.simulate.truth import true_rate
from virchow_st.training.train import train
from virchow_st.types import BIN_UM, SCALES_UM, Float32Array, Float64Array, Int64Array


@dataclass(frozen=True, eq=False)
class Truth:
    """True rates of some genes of a slide.

    Attributes:
        slide: Its counts.
        genes: (G,) index of each gene in the slide's genes.
        rates: (G, R, C) UMIs per 2 µm bin, with the slide's stripes.
        redrawn: (G, R, C) UMIs drawn anew from them.
    """

    slide: SlideCounts
    genes: Int64Array
    rates: Float32Array
    redrawn: Float32Array

    def scored(self, g: int, rate: Float32Array) -> Float64Array:
        """PCC with the truth and D² on the UMIs drawn anew, (2, 4 scales), of rates (R, C)."""
        found = np.empty((2, len(SCALES_UM)))
        seen = np.zeros(self.slide.tissue.shape, bool)
        seen.ravel()[self.slide.place] = True
        for s, scale in enumerate(SCALES_UM):
            mask = pool_mask(seen, scale // BIN_UM)
            x, true, umis = (
                sum_pool(np.ascontiguousarray(m[None]), scale // BIN_UM)
                for m in (rate, self.rates[g], self.redrawn[g])
            )
            found[0, s] = np.corrcoef(x[0][mask], true[0][mask])[0, 1]
            sums, total, n = poisson_sums(x, umis, mask), umis[:, mask].sum(1), mask.sum()
            null = constant_deviance(sums, total, n, true[:, mask].mean(1))
            found[1, s] = deviance_explained(poisson_deviance(sums, total), null)[0]
        return found


def measure(
    folder: Path, config: vst.SimulateConfig, with_run: bool, n_folds: int
) -> dict[str, Any]:
    """Simulate, extract and denoise the last patient of a cohort, and compare with its truth."""
    patient, others = config.patients[-1], config.patients[:-1]
    vst.simulate_cohort(folder, config)
    for _ in vst.extract_cohort(
        folder / "slides.csv", vst.ExtractConfig("stain", device="cpu"), SILENT
    ):
        pass
    store = vst.open_store(folder / f"{patient}.vst")
    slide, panel = read_slide(store), choose_panel("top50", [store])
    number = {gene: i for i, gene in enumerate(slide.panel.ids)}
    of_panel = np.array([number[gene] for gene in panel.ids])
    sample = np.argsort(slide.rows.gene_totals, kind="stable")
    n_sample = min(len(sample), N_GROUPS * N_PER_DECILE)
    sample = np.sort(sample[np.linspace(0, len(sample) - 1, n_sample).round().astype(int)])
    genes = np.union1d(of_panel, sample)
    rates = true_rate(
        folder / patient / "truth.h5", [slide.panel.ids[g] for g in genes],
        *slide.corner, *slide.tissue.shape,
    )  # fmt: skip
    redrawn = np.random.default_rng(config.seed).poisson(rates).astype(np.float32)
    truth = Truth(slide, genes, rates, redrawn)
    scores = simpler_ways(truth)
    ways: dict[str, Prior | None] = {"counts alone": None}
    seconds = {}
    if with_run:
        began = time.process_time()
        run = trained(folder, others, patient, config)
        ways["counts and H&E of a run"] = predict_prior(
            [load_other(run, store)], store, slide, np.zeros(len(store), np.int64)
        )
        seconds["the run, if it was not there"] = time.process_time() - began
    if n_folds:
        began = time.process_time()
        ways["counts and H&E of own blocks"] = train_folds(
            store, slide, DenoiseConfig(leave_blocks_out=n_folds), folder / "folds"
        )
        seconds["decoders of own blocks"] = time.process_time() - began
    about: dict[str, Any] = {}
    for way, prior in ways.items():
        began = time.process_time()
        if prior is not None:
            given = prior
            name = way.replace("counts and ", "")
            scores[name] = np.stack([
                truth.scored(i, on_lattice(slide, given.rate(g) * slide.rows.exposure))
                for i, g in enumerate(genes)
            ])  # fmt: skip
        found = estimate(slide, 0, 0, prior=prior)
        scores[way] = of_rates(truth, found.rates)
        weights = found.recipe.weights
        about[way] = {
            "n_factors": found.recipe.n_factors,
            "width_um": found.recipe.width_um,
            "n_own": len(found.recipe.own),
            "weight": 0.0 if weights is None else round(float(weights.beta.mean()), 2),
        }
        seconds[way] = time.process_time() - began
    in_panel, in_sample = np.isin(genes, of_panel), np.isin(genes, sample)
    abundance = slide.rows.gene_totals[genes[in_sample]] / len(slide.rows)
    return {
        "seed": config.seed,
        "umis_per_bin": round(float(slide.rows.count.sum(dtype=np.float64) / len(slide.rows)), 2),
        "pcc": {way: rounded(np.nanmean(v[in_panel, 0], axis=0)) for way, v in scores.items()},
        "d2": {way: rounded(np.nanmean(v[in_panel, 1], axis=0)) for way, v in scores.items()},
        "pcc_by_abundance_2um": {
            way: rounded(by_decile(v[in_sample, 0, 0], abundance).mean)
            for way, v in scores.items()
        },
        "pcc_by_abundance_8um": {
            way: rounded(by_decile(v[in_sample, 0, 2], abundance).mean)
            for way, v in scores.items()
        },
        "chosen": about,
        "cpu_s": {way: round(s) for way, s in seconds.items()},
    }  # fmt: skip


def simpler_ways(truth: Truth) -> dict[str, Float64Array]:
    """Scores (genes, 2, 4 scales) of the counts, total × mean, the best Gaussian and the truth."""
    slide, smoother = truth.slide, smoother_of(truth.slide)
    exposure = np.asarray(smoother.exposure, np.float32)
    columns = gene_columns(slide.rows, truth.genes)
    names = "truth", "raw counts", "total × mean", "best Gaussian"
    found = {name: np.empty((len(truth.genes), 2, len(SCALES_UM))) for name in names}
    totals = slide.rows.totals.astype(np.float32)
    smooth_totals = [smoother.smoothed(totals, w) * exposure for w in GAUSSIANS_UM]
    for i in range(len(truth.genes)):
        counts = column(columns, i)
        gaussians = [smoother.smoothed(counts, w) * exposure for w in GAUSSIANS_UM]
        share = np.float32(counts.sum() / totals.sum())
        found["truth"][i] = truth.scored(i, truth.rates[i])
        found["raw counts"][i] = truth.scored(i, on_lattice(slide, counts))
        for name, maps in (
            ("total × mean", [share * m for m in smooth_totals]),
            ("best Gaussian", gaussians),
        ):
            each = np.stack([truth.scored(i, on_lattice(slide, m)) for m in maps])
            found[name][i] = each.max(axis=0)
    return found


def of_rates(truth: Truth, rates: Rates) -> Float64Array:
    """Scores (genes, 2, 4 scales) of denoised rates, times the slide's stripes."""
    exposure = truth.slide.rows.exposure.astype(np.float32)
    return np.stack([
        truth.scored(i, on_lattice(
            truth.slide, (rates.factors @ rates.loadings[g].astype(np.float32)) * exposure
        ))
        for i, g in enumerate(truth.genes)
    ])  # fmt: skip


def on_lattice(slide: SlideCounts, values: Any) -> Float32Array:
    """(R, C) map of values (n,) of the observed tissue bins, 0 elsewhere."""
    grid = np.zeros(slide.tissue.shape, np.float32)
    grid.ravel()[slide.place] = values
    return grid


def trained(
    folder: Path, others: tuple[str, ...], patient: str, config: vst.SimulateConfig
) -> Path:
    """A run of plain ``vst train`` on the other patients; one that is there is taken."""
    run = folder / "run"
    if not (run / "best_metrics.json").is_file():
        stores = tuple(str((folder / f"{p}.vst").resolve()) for p in (*others, patient))
        given = vst.TrainConfig(stores=stores, test_patient=patient, device="cpu")
        train(run, given, resume=is_begun(run), progress=SILENT)
    return run


def rounded(values: Any) -> list[float]:
    return [round(float(v), 4) for v in values]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[131, 132, 133])
    parser.add_argument("--bins", type=int, default=640)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--hidden-variation", type=float, default=0.0)
    parser.add_argument("--stripes", type=float, default=0.0)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--leave-blocks-out", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = []
    for seed in arguments.seeds:
        config = vst.SimulateConfig(
            seed=seed, bins=arguments.bins, genes=arguments.genes,
            hidden_variation=arguments.hidden_variation, stripes=arguments.stripes,
        )  # fmt: skip
        if not arguments.run:  # no other patient is needed
            config = replace(config, patients=config.patients[-1:])
        folder = arguments.folder / f"seed-{seed}"
        results.append(measure(folder, config, arguments.run, arguments.leave_blocks_out))
        print(json.dumps(results[-1], ensure_ascii=False), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

"""The parts of `gpu.py` that train and predict; see `gpu_parts.py`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gpu_parts import RATE_ERROR, check_error, error, wait

from virchow_st.bench.samples import draw_patches, write_store
from virchow_st.bench.tables import Cell, Table, interleaved
from virchow_st.bench.train_gains import gains_table
from virchow_st.bench.train_steps import epoch, trainer_of
from virchow_st.config import ExtractConfig, PredictConfig, SimulateConfig, TrainConfig
from virchow_st.evaluation.evaluate import evaluate_run
from virchow_st.extract.slide import extract_slide
from virchow_st.predict.load import load_run
from virchow_st.predict.slide import predict_slide
from virchow_st.run.panel import choose_panel
from virchow_st.run.transcriptome import RunGenes, choose_genes
from virchow_st.simulate import simulate_cohort
from virchow_st.store.reader import Store, open_store
from virchow_st.training.train import train
from virchow_st.training.trainer import Trainer
from virchow_st.types import PATCH_UM

_N_FACTORS = 32


def drawn_store(n_patches: int, dim: int) -> Store:
    """A store of drawn patches: 18,085 genes, 9 UMIs per bin, random tokens."""
    path = Path("drawn.vst")
    write_store(path, list(draw_patches(n_patches, dim)))
    return open_store(path)


def gains(device: torch.device, tiny: bool) -> list[Table]:
    """Training steps of the default decoder and the largest, one optimisation after the other."""
    store = drawn_store(2 if tiny else 64, 16 if tiny else 1280)
    panel = choose_panel("top:5" if tiny else "top50", [store])
    sides = [("linear", 2)] if tiny else [("fusion", 4), ("hist2st-large", 64)]
    rounds = 1 if tiny else 3
    return [
        gains_table(store, panel, str(device), batch_size, decoder=decoder, rounds=rounds)
        for decoder, batch_size in sides
    ]


def transcriptome(device: torch.device, tiny: bool) -> list[Table]:
    """A training step of all genes beside one of 50, with the default recipe: time and memory."""
    store = drawn_store(2 if tiny else 64, 16 if tiny else 1280)
    n_factors = 4 if tiny else _N_FACTORS
    decoder = "linear" if tiny else "fusion"

    def config(panel: str, factors: int = 0) -> TrainConfig:
        return TrainConfig(
            panel=panel, factors=factors, decoder=decoder, batch_size=2 if tiny else 4,
            compile="never", device=str(device), stain_variation=1.0,
        )  # fmt: skip

    few, every = choose_panel("top50", [store]), choose_genes("all", [store])
    sides: dict[str, tuple[TrainConfig, RunGenes]] = {
        "50 genes, a map each": (config("top50"), RunGenes(few, few)),
        f"{len(every.all):,} genes, {n_factors} factors": (config("all", n_factors), every),
    }
    trainers = [trainer_of(settings, store, genes) for settings, genes in sides.values()]
    epochs = [epoch(trainer, trainer.feed) for trainer in trainers]
    seconds = interleaved(*epochs, rounds=1 if tiny else 3)
    peaks = [peak_of(trainer, run) for trainer, run in zip(trainers, epochs, strict=True)]
    rows: list[list[Cell]] = []
    for name, trainer, s, peak in zip(sides, trainers, seconds, peaks, strict=True):
        per_step = s / trainer.schedule.steps_per_epoch
        more = peak / peaks[0] if peak and peaks[0] else None
        memory = peak / 1e9 if peak else None
        rows.append([name, 1e3 * per_step, s / seconds[0], memory, more])
    return [
        Table(
            f"Training step of all genes: {decoder}, B = {trainers[0].config.batch_size}",
            ["", "ms", "ratio of time", "GPU memory of a step, GB", "ratio of memory"],
            rows,
            ["GradNorm, Muon, not compiled. Wanted: at most 1.3 times the time, 2 the memory."],
        )
    ]


def peak_of(trainer: Trainer, run: Callable[[], None]) -> float | None:
    """Peak GPU memory of an epoch in addition to what is held, bytes; None on the CPU."""
    if trainer.device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(trainer.device)
    torch.cuda.reset_peak_memory_stats(trainer.device)
    run()
    return float(torch.cuda.max_memory_allocated(trainer.device) - before)


def pipeline(device: torch.device, tiny: bool) -> list[Table]:
    """From simulated slides to a predicted one, on the GPU; its rates are those of the CPU."""
    cohort = SimulateConfig(
        patients=("P1", "P5"), bins=384 if tiny else 896, genes=60 if tiny else 1000
    )
    slides = simulate_cohort(Path("slides"), cohort)
    images = [slide / "tissue_image.tif" for slide in slides]
    stores = tuple(str(Path(f"{slide.name}.vst").absolute()) for slide in slides)
    settings = TrainConfig(
        stores=stores, test_patient="P5", panel="all:top:6", factors=4,
        decoder="linear" if tiny else "fusion", epochs=1 if tiny else 3, device=str(device),
    )  # fmt: skip
    run, out = Path("run"), Path("rates.zarr")

    def extract() -> None:
        for slide, image, store in zip(slides, images, stores, strict=True):
            extract_slide(
                slide / "outs", image, Path(store), slide.name, ExtractConfig(encoder="stain")
            )

    stages: dict[str, Callable[[], object]] = {
        "extract, stain": extract,
        f"train, {settings.decoder}, {settings.epochs} epochs": lambda: train(run, settings),
        "evaluate": lambda: evaluate_run(run, str(device)),
        "predict the slide": lambda: predict_slide(
            [run], images[1], out, PredictConfig(device=str(device))
        ),
    }
    rows: list[list[Cell]] = []
    for name, stage in stages.items():
        began = time.perf_counter()
        stage()
        rows.append([name, time.perf_counter() - began])
    store = open_store(stores[1])
    here, on_cpu = load_run(run, str(device)), load_run(run, "cpu")
    found, expected = (torch.from_numpy(r.predict(store[0])) for r in (here, on_cpu))
    difference = error(found, expected)
    check_error("predicted rates beside those of the CPU", difference, RATE_ERROR)

    n = 1 if tiny else 16
    tokens = np.stack([store[i % len(store)].tokens for i in range(n)])
    picture = np.stack([store[i % len(store)].image for i in range(n)])

    def decode() -> None:
        here.rates(tokens, picture if here.wants_image else None)
        wait(device)

    (seconds,) = interleaved(decode, rounds=1 if tiny else 10)
    mm2 = (PATCH_UM / 1e3) ** 2
    return [
        Table(
            f"From slides to rates: {cohort.bins}×{cohort.bins} bins, {cohort.genes} genes",
            ["", "s"],
            rows,
            [f"Rates on {device.type} differ from those on the CPU by {difference:.2g} of their "
             "norm."],
        ),
        Table(
            f"Rates from tokens: {settings.decoder}, batches of {n}, {here.n_genes} genes",
            ["", "patches/s", "mm²/s"],
            [["to the host", n / seconds, mm2 * n / seconds]],
        ),
    ]  # fmt: skip

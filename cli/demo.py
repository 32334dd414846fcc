"""``vst demo``: the whole pipeline on simulated slides, in minutes on a laptop."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict

import click
import xxhash

import virchow_st
from virchow_st.config import ExtractConfig, SimulateConfig, TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.runtime.atomic import write_json
from virchow_st.runtime.lock import LOCK_NAME, locked
from virchow_st.schema import read_json
from virchow_st_cli.console import Console
from virchow_st_cli.options import with_console
from virchow_st_cli.scores import print_comparison, print_scores

_MARK = "demo.json"
# What each run changes in `_TRAIN`, and how the tables call it; the folders are named by the keys.
_RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "poisson": ("Poisson", {}),
    "mse": ("MSE", {"loss": "mse"}),
    "all_genes": ("Poisson, all genes", {"panel": "all"}),
}
_PARTS = ("cohort", *_RUNS)
_TEST_PATIENT = "P5"
_COHORT = SimulateConfig()
_EXTRACT = ExtractConfig(encoder="stain", device="cpu")
# The default recipe with half of its epochs, since the demo trains three times in eight minutes.
_TRAIN = TrainConfig(test_patient=_TEST_PATIENT, epochs=15, device="cpu")
# Factors of `_denoise`, given to save the time of choosing them.
_N_FACTORS = 8
# The gene it shows, by abundance: amid the 50 most abundant, neither the best nor the worst.
_RANK_SHOWN = 25


@click.command(short_help="Run the whole pipeline on simulated slides, in minutes.")
@click.argument("out", type=click.Path(path_type=Path), default=Path("demo"))
@with_console
def demo(console: Console, out: Path) -> None:
    """Simulate three patients, extract, train in three ways, evaluate, denoise, draw figures.

    The ways are the Poisson loss, MSE, and the Poisson loss on all genes.

    A stopped demo is continued; if the program has changed since, the demo starts again.
    """
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, out / LOCK_NAME):
        _run(console, out)


def _run(console: Console, out: Path) -> None:
    from virchow_st.extract.cohort import extract_cohort
    from virchow_st.run.compare import compare_runs
    from virchow_st.simulate import simulate_cohort

    started = time.monotonic()
    _claim(out)
    console.note(f"1/5 simulate {', '.join(_COHORT.patients)}")
    simulate_cohort(out / "cohort", _COHORT, console.note)
    console.note("2/5 extract with the stain encoder")
    for outcome in extract_cohort(out / "cohort" / "slides.csv", _EXTRACT, console):
        if outcome.n_patches is None:
            raise ConfigError(outcome.text)
    stores = tuple(str((out / "cohort" / f"{p}.vst").resolve()) for p in _COHORT.patients)
    truth = out / "cohort" / _TEST_PATIENT / "truth.h5"
    metrics = {}
    for name, (title, changes) in _RUNS.items():
        console.note(f"3/5 train on {_trainers()} ({title}), evaluate on {_TEST_PATIENT}")
        config = replace(_TRAIN, stores=stores, **changes)
        metrics[title] = _train_and_evaluate(console, out / name, config, truth)
    console.note(f"4/5 denoise the counts of {_TEST_PATIENT}")
    denoised = _denoise(console, out, truth)
    console.note("5/5 draw, report")
    pictures = _draw(console, out)
    report = _report(out, console)
    print_scores(console, metrics)
    titles = {str(out / name): title for name, (title, _) in _RUNS.items()}
    print_comparison(console, compare_runs([out / name for name in _RUNS]), titles)
    console.result(f"picture: {pictures[0]}")
    console.result(f"denoised: {denoised}")
    console.result(f"report: {report}")
    console.note(f"all pictures in {out / 'poisson' / 'figures'}")
    console.note(f"{time.monotonic() - started:.0f} s")


class _Mark(TypedDict):
    format: Literal["virchow_st.demo/1"]
    program: str


def _claim(out: Path) -> None:
    """Create or reuse the demo's folder; refuse a folder that another program wrote."""
    mark = {"format": "virchow_st.demo/1", "program": _program_digest()}
    if (out / _MARK).is_file():
        found = read_json(out / _MARK, _Mark, "give another folder")
        if found == mark:
            return
        for name in _PARTS:
            shutil.rmtree(out / name, ignore_errors=True)
    elif any(path.name != LOCK_NAME for path in out.iterdir()):
        raise ConfigError(f"{out}: expected a new folder or an earlier demo; give another folder")
    write_json(out / _MARK, mark)


def _program_digest() -> str:
    hasher = xxhash.xxh64(virchow_st.__version__.encode())
    for folder in (Path(virchow_st.__file__).parent, Path(__file__).parent):
        for file in sorted(folder.rglob("*.py")):
            hasher.update(file.read_bytes())
    return hasher.hexdigest()


def _trainers() -> str:
    return "+".join(p for p in _COHORT.patients if p != _TEST_PATIENT)


def _train_and_evaluate(
    console: Console, run: Path, config: TrainConfig, truth: Path
) -> dict[str, Any]:
    """Train and evaluate a run unless its results exist; returns the content of metrics.json."""
    from virchow_st.evaluation.evaluate import evaluate_run
    from virchow_st.run.folder import is_begun
    from virchow_st.run.lock import RunLock
    from virchow_st.run.results import read_metrics
    from virchow_st.training.train import train

    with RunLock() as lock:
        lock.take(run)  # tidies up what a demo that was killed left in it
    if not (run / "best_metrics.json").is_file():
        if run.exists() and not is_begun(run):
            shutil.rmtree(run)
        train(run, config, resume=is_begun(run), progress=console)
    if not (run / "metrics.json").is_file():
        evaluate_run(run, config.device, console, truth)
    return read_metrics(run)


def _denoise(console: Console, out: Path, truth: Path) -> Path:
    """Denoise the test slide and draw one gene: counts, Gaussian, denoised, truth."""
    import numpy as np

    from virchow_st.denoise.beside_truth import beside_truth
    from virchow_st.denoise.estimate import estimate
    from virchow_st.denoise.slide import read_slide
    from virchow_st.output.figures.denoised import draw_denoised
    from virchow_st.simulate.truth import true_rate
    from virchow_st.store.reader import open_store

    slide = read_slide(open_store(out / "cohort" / f"{_TEST_PATIENT}.vst"), console)
    rates = estimate(slide, _N_FACTORS, 0, console).rates
    gene = int(np.argsort(-slide.rows.gene_totals, kind="stable")[_RANK_SHOWN])
    window = *slide.corner, *slide.tissue.shape
    true = true_rate(truth, [slide.panel.ids[gene]], *window)[0]
    maps = beside_truth(slide, rates, gene, true)
    return draw_denoised(out / "denoised", slide.panel.symbols[gene], maps, true, slide.tissue)


def _draw(console: Console, out: Path) -> list[Path]:
    from virchow_st.output.figures import draw_figures

    pictures = draw_figures(out / "poisson", against=out / "mse", progress=console)
    return [picture for picture in pictures if picture.suffix == ".png"]


def _report(out: Path, console: Console) -> Path:
    from virchow_st.output.report import write_report

    return write_report(out / "poisson", None, console)

"""Measures the scores of ``vst train`` with default settings over time, on simulated cohorts.

Each cohort is simulated with the settings of ``vst demo`` and a seed of its own, extracted with the
stain encoder and trained with the defaults. The run is evaluated on the left-out patient as of 1,
2.5 and 6 minutes of training, and at the end. Time is measured from the start of `train` and
includes reading the stores and the regression with which the decoder starts.

    python benchmarks/default_recipe.py FOLDER --cohorts 101 102 103 --json default_recipe.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import virchow_st as vst
from virchow_st.runtime.progress import SILENT

MARKS_S = (60, 150, 360)
TEST_PATIENT = "P5"
_MOST_TRIES = 20


class Snapshots:
    """Progress receiver that copies the run when the time of each mark has passed.

    Checkpoints are written while training goes on. The copy is made after the first epoch that ends
    past the mark, and holds the best checkpoint that had been saved by then.
    """

    def __init__(self, run: Path, folder: Path) -> None:
        self._run, self._folder = run, folder
        self._began = time.monotonic()
        self._left = list(MARKS_S)
        self.taken: dict[int, Path] = {}

    def note(self, text: str) -> None:
        if not text.startswith("epoch "):
            return
        while self._left and time.monotonic() - self._began >= self._left[0]:
            mark = self._left.pop(0)
            self.taken[mark] = self._folder / f"after-{mark}s"
            for name in ("config.toml", "panel.tsv", "split.json", "checkpoints/best"):
                _copy(self._run / name, self.taken[mark] / name)

    def warn(self, text: str) -> None:
        print(f"warning: {text}")

    def step(self, done: int, total: int, unit: str, detail: str = "") -> None:
        pass


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder that another thread may replace meanwhile."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(_MOST_TRIES):
        try:
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copy(source, target)
            return
        except (FileNotFoundError, shutil.Error):  # replaced just now
            shutil.rmtree(target, ignore_errors=True)
            time.sleep(0.05)
    raise RuntimeError(f"{source}: could not be copied in {_MOST_TRIES} tries")


def measure(folder: Path, cohort: int, seed: int) -> dict[str, Any]:
    """Train and evaluate on one cohort."""
    slides = folder / f"cohort-{cohort}"
    config = vst.SimulateConfig(seed=cohort)
    vst.simulate_cohort(slides, config)
    for _ in vst.extract_cohort(
        slides / "slides.csv", vst.ExtractConfig("stain", device="cpu"), SILENT
    ):
        pass
    stores = tuple(str((slides / f"{p}.vst").resolve()) for p in config.patients)
    run = folder / f"run-{cohort}-{seed}" / "end"
    for_run = run.parent
    shutil.rmtree(for_run, ignore_errors=True)
    for_run.mkdir(parents=True)
    snapshots = Snapshots(run, for_run)
    wall, cpu = time.monotonic(), time.process_time()
    vst.train(
        run,
        vst.TrainConfig(stores=stores, test_patient=TEST_PATIENT, seed=seed, device="cpu"),
        progress=snapshots,
    )
    result: dict[str, Any] = {
        "cohort": cohort,
        "seed": seed,
        "wall_s": round(time.monotonic() - wall, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "cores": len(os.sched_getaffinity(0)),
    }
    for name, path in {**{f"{m} s": p for m, p in snapshots.taken.items()}, "end": run}.items():
        metrics = vst.evaluate_run(path, "cpu", SILENT)
        result[name] = {
            "epoch": metrics["epoch"],
            "of_ceiling": shares(metrics["scales"]),
            "ridge_of_ceiling": shares(metrics["baselines"]["ridge"]),
            "d2_poisson": {s: round(v["d2_poisson"], 4) for s, v in metrics["scales"].items()},
            "seams": metrics["seams"],
        }
    return result


def shares(scales: dict[str, Any]) -> dict[str, float]:
    return {scale: round(scores["pcc_of_ceiling"], 4) for scale, scores in scales.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cohorts", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = []
    for cohort in arguments.cohorts:
        results.append(measure(arguments.folder, cohort, arguments.seed))
        print(json.dumps(results[-1], indent=1), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

"""The commands of the trials: their inputs, and how each is typed and prepared."""

from __future__ import annotations

import importlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trial_processes import ended, start

EPOCHS = 3
GENE = "EPCAM"  # drawing all would take most of the time
PEEK = os.WEXITED | os.WNOHANG | os.WNOWAIT  # whether it has ended, which stays to be asked
SIMULATE = ("--bins", "384", "--genes", "120", "--cells")
TRAIN = ("--test-patient", "P5", "--panel", "top:6", "--decoder", "linear", "--epochs", str(EPOCHS),
         "--batch-size", "4", "--accumulate", "1", "--device", "cpu", "-q")  # fmt: skip
FUSION = tuple("fusion" if word == "linear" else word for word in TRAIN)


@dataclass
class World:
    """Inputs shared by all trials (slides, stores, an evaluated run), and a work folder."""

    folder: Path

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def cohort(self) -> Path:
        return self.folder / "cohort"

    def stores(self) -> list[str]:
        return [str(self.cohort / f"{patient}.vst") for patient in ("P1", "P2", "P5")]

    def make(self) -> None:
        self._make_run()
        self._make_begun()

    def _make_begun(self) -> None:
        """A run whose training was killed after its first epoch, for ``train --resume``."""
        begun, run = self.folder / "begun", self.folder / "being_begun"
        while not begun.is_dir():
            shutil.rmtree(run, ignore_errors=True)
            running = start(["train", *self.stores(), "--run", run, *TRAIN], self.folder)
            while n_epochs(run) < 1 and os.waitid(os.P_PID, running.process, PEEK) is None:
                time.sleep(0.001)
            ended(running, kill_after=0)
            if n_epochs(run) < EPOCHS:  # else it was over before it was killed
                run.rename(begun)

    def _make_run(self) -> None:
        run = self.folder / "run"
        if (run / "metrics.json").is_file():
            return
        slides = self.cohort / "slides.csv"
        for arguments in (
            ["simulate", self.cohort, *SIMULATE, "-q"],
            ["extract", "--manifest", slides, "--encoder", "stain", "--device", "cpu", "-q"],
            ["train", *self.stores(), "--run", run, *TRAIN],
            ["evaluate", run, "--device", "cpu", "-q"],
        ):
            code, _, err = ended(start(arguments, self.folder))
            assert code == 0, err


@dataclass(frozen=True)
class Command:
    """A command to disturb: how its work folder is prepared, and its arguments."""

    type: Callable[[World], list[object]]
    again: Callable[[World], list[object]] | None = None  # what is typed after a disturbance
    finds: Callable[[World], None] = lambda world: None
    before: Callable[[], None] = lambda: None  # in the process, before the command
    goes_on: bool = False  # what it has finished stays when it fails


def copied_run(world: World) -> None:
    shutil.copytree(world.folder / "run", world.work / "run")


def trained_run(world: World) -> None:
    copied_run(world)
    for name in ("metrics.json", "per_gene.csv", "blocks.npz", "overview.h5"):
        (world.work / "run" / name).unlink()
    shutil.rmtree(world.work / "run" / "maps")


def begun_run(world: World) -> None:
    shutil.copytree(world.folder / "begun", world.work / "run")


def n_epochs(run: Path) -> int:
    history = run / "history.jsonl"
    return len(history.read_bytes().splitlines()) if history.exists() else 0


def smaller_demo() -> None:
    demo = importlib.import_module("virchow_st_cli.demo")
    config = importlib.import_module("virchow_st.config")
    demo._COHORT = config.SimulateConfig(bins=384, genes=120)  # type: ignore[attr-defined]
    demo._TRAIN = config.TrainConfig(  # type: ignore[attr-defined]
        test_patient="P5", decoder="linear", batch_size=4, accumulate=1, device="cpu", epochs=2,
        panel="top:6",
    )  # fmt: skip
    figures = importlib.import_module("virchow_st.output.figures")
    figures.draw_figures = partial(figures.draw_figures, genes=[GENE])  # type: ignore[attr-defined]


def train_again(world: World) -> list[object]:
    run = world.work / "run"
    if run.is_dir():
        return ["train", "--run", run, "--resume", "-q"]
    return ["train", *world.stores(), "--run", run, *TRAIN]


COMMANDS = {
    "simulate": Command(
        lambda w: ["simulate", w.work / "sim", "--bins", "256", "--genes", "60", "--patients",
                   "P1,P2"],
        goes_on=True,
    ),
    "extract": Command(
        lambda w: ["extract", w.cohort / "P1/outs", "--image", w.cohort / "P1/tissue_image.tif",
                   "--store", w.work / "P1.vst", "--patient", "P1", "--encoder", "stain",
                   "--device", "cpu"],
        goes_on=True,
    ),
    "train": Command(
        lambda w: ["train", *w.stores(), "--run", w.work / "run", *TRAIN], again=train_again,
        goes_on=True,
    ),
    "train fusion": Command(
        lambda w: ["train", *w.stores(), "--run", w.work / "run", *FUSION], again=train_again,
        goes_on=True,
    ),
    "train --resume": Command(
        lambda w: ["train", "--run", w.work / "run", "--resume", "-q"], finds=begun_run,
        goes_on=True,
    ),
    "evaluate": Command(
        lambda w: ["evaluate", w.work / "run", "--device", "cpu"], finds=copied_run
    ),
    "evaluate first": Command(
        lambda w: ["evaluate", w.work / "run", "--device", "cpu"], finds=trained_run
    ),
    "figures": Command(
        lambda w: ["figures", w.work / "run", "--genes", GENE], finds=copied_run
    ),
    "report": Command(
        lambda w: ["report", w.work / "run", "--genes", GENE], finds=copied_run
    ),
    "predict": Command(
        lambda w: ["predict", w.folder / "run", w.cohort / "P5/tissue_image.tif", "--mpp", "0.5",
                   "--out", w.work / "p.zarr", "--device", "cpu"]
    ),
    "export": Command(lambda w: ["export", w.folder / "run", "--out", w.work / "e.zarr"]),
    "export h5ad": Command(
        lambda w: ["export", w.folder / "run", "--out", w.work / "e.h5ad", "--format", "h5ad"]
    ),
    "cells": Command(
        lambda w: ["cells", w.folder / "run", "--store", w.cohort / "P5.vst", "--cells",
                   w.cohort / "P5/outs", "--out", w.work / "c.h5ad"]
    ),
    "cells zarr": Command(
        lambda w: ["cells", w.cohort / "P5.vst", "--cells", w.cohort / "P5/outs", "--out",
                   w.work / "c.zarr"]
    ),
    "cells nuclei": Command(
        lambda w: ["cells", w.cohort / "P5.vst", "--cells", "nuclei", "--image",
                   w.cohort / "P5/tissue_image.tif", "--out", w.work / "n.h5ad"]
    ),
    "demo": Command(lambda w: ["demo", w.work / "demo"], before=smaller_demo, goes_on=True),
}  # fmt: skip

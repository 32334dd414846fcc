"""Two patients whose tokens determine the rates, and settings that learn them in seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_store import write_store

from virchow_st.config import TrainConfig
from virchow_st.run.panel import choose_panel
from virchow_st.run.split import Member, Split, split_patients
from virchow_st.store.reader import Patch, open_store
from virchow_st.training import schedule
from virchow_st.training.dataset import PatchDataset

PATIENTS = ("P1", "P5")  # P5 is the test patient
_TIMES = ("seconds", "patches_per_s")


@contextmanager
def few_steps(n: int) -> Iterator[None]:
    """Set the smallest number of optimiser steps per epoch to ``n``; the default is larger."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "_LEAST_STEPS_PER_EPOCH", n)
        yield


def two_patients(
    folder: Path, n_patches: tuple[int, int] = (5, 4), columns: int = 5
) -> tuple[str, ...]:
    """Write stores of 4 genes; returns their paths."""
    for seed, (path, patient, n) in enumerate(zip(paths(folder), PATIENTS, n_patches, strict=True)):
        write_store(Path(path), patient, n, n_genes=4, seed=seed, columns=columns)
    return paths(folder)


def paths(folder: Path) -> tuple[str, ...]:
    return tuple(str(folder / f"{patient}.vst") for patient in PATIENTS)


def tiny_config(stores: tuple[str, ...], **changes: Any) -> TrainConfig:
    recipe: dict[str, Any] = {
        "test_patient": "P5", "panel": "top:3", "decoder": "linear", "epochs": 2, "batch_size": 2,
        "accumulate": 1, "lr": 5e-3, "warmup_epochs": 1, "device": "cpu", "optimizer": "adamw",
        "stain_variation": 1.0,
    }  # fmt: skip
    return TrainConfig(stores=stores, **recipe | changes)


def history(run: Path, *, with_times: bool = False) -> list[dict[str, Any]]:
    """The epochs in a run's history, without times, which differ between runs."""
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text("utf-8").splitlines()]
    left_out = () if with_times else _TIMES
    return [{k: v for k, v in line.items() if k not in left_out} for line in lines]


def opened(stores: tuple[str, ...]) -> tuple[PatchDataset, Split]:
    """Patches of the stores with three genes, and their split; P5 is the test patient."""
    found = [open_store(path) for path in stores]
    split = split_patients(found, "P5", 0)
    return PatchDataset(found, choose_panel("top:3", found[:1], found[1:])), split


class Watched(PatchDataset):
    """A dataset of which only the patches in ``allowed`` may be read."""

    allowed: tuple[Member, ...] = ()

    def patch(self, member: Member) -> Patch:
        assert member in self.allowed, f"{member} does not train"
        return super().patch(member)

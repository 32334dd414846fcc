"""Folds whose workers are killed at random: all finished, with the results of one process."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from cohort_job import at_work
from slurm_here import start
from tiny_store import write_store

PATIENTS = ("P1", "P2", "P3", "P4")
OPTIONS = (
    "--leave-one-out", "--panel", "top:3", "--decoder", "linear", "--epochs", 12,
    "--batch-size", 2, "--accumulate", 1, "--lr", 5e-3, "--warmup-epochs", 1, "--device", "cpu",
    "--optimizer", "adamw",
)  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, beside its stores."""
    folder = tmp_path_factory.mktemp("folds")
    for seed, patient in enumerate(PATIENTS, 254):
        write_store(folder / f"{patient}.vst", patient, 5, n_genes=4, seed=seed, columns=5)
    command = start("train", *stores(folder), "--run", folder / "run", *OPTIONS, folder=folder)
    _, err = command.communicate(timeout=300)
    assert command.returncode == 0, err
    return folder / "run"


def stores(folder: Path) -> list[Path]:
    return [folder / f"{patient}.vst" for patient in PATIENTS]


def results(run: Path) -> dict[str, bytes]:
    """What a run has found, and its weights; other files hold times."""
    names = ("summary.json", "*/best_metrics.json", "*/per_gene.csv", "*/panel.tsv",
             "*/checkpoints/best/*.safetensors")  # fmt: skip
    files = [path for name in names for path in run.glob(name)]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "slurm", "ray"])
def test_folds_whose_workers_are_killed_end_as_those_of_one_process(
    alone: Path, tmp_path: Path, executor: str
) -> None:
    if executor == "ray":
        pytest.importorskip("ray", reason="Ray is 240 MB; pip install 'virchow_st[cluster]'")
    run = tmp_path / "run"
    arguments = ["train", *stores(alone.parent), "--run", run, *OPTIONS]
    command = start(*arguments, "--executor", executor, "--workers", 2, folder=tmp_path)
    killed, moments = 0, random.Random(258)
    while killed < 6 and command.poll() is None:
        time.sleep(moments.uniform(0, 1.5))
        # A fold that cost five workers would count as failed.
        if workers := at_work(run / "folds.cohort/claims", most_attempts=3):
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(moments.choice(workers), signal.SIGKILL)
                killed += 1
    _, err = command.communicate(timeout=500)
    assert command.returncode == 0, err
    assert killed >= 3
    lines = [json.loads(x) for x in (run / "folds.cohort/cohort.jsonl").read_text().splitlines()]
    assert [(line["item"], line["state"]) for line in lines] == [(p, "done") for p in PATIENTS]
    assert max(line["attempt"] for line in lines) > 1
    expected = results(alone)
    assert len(expected) == 1 + 4 * len(PATIENTS)
    assert results(run) == expected

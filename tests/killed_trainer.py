"""A trainer that is killed: run as a script, which trains in forks of itself.

``killed_trainer.py CONFIG FOLDER SEED N``: for each of N runs, training is killed (SIGKILL, nothing
is tidied) up to three times, at moments drawn from the seed, and resumed until it ends; a line of
JSON a run says how often it was killed and after which epoch. Forks share what is loaded already:
a moment in training costs its own time and not that of loading torch.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from virchow_st import schedule
from virchow_st.config import TrainConfig, from_toml
from virchow_st.run_folder import is_begun
from virchow_st.training import train

STEPS = 3


def main(config: TrainConfig, folder: Path, seed: int, n_runs: int) -> None:
    rng = random.Random(seed)
    torch.set_num_threads(1)
    schedule._LEAST_STEPS_PER_EPOCH = STEPS
    whole, seconds = train_in_fork(folder / "whole", config, None)
    assert whole == 0, "the run that nothing happens to failed"
    for i in range(n_runs):
        run, after = folder / f"run{i}", []
        for _ in range(3):
            status, _ = train_in_fork(run, config, rng.uniform(0, seconds))
            if status == 0:
                break
            assert status == -signal.SIGKILL, status
            after.append(n_lines(run))
        else:
            assert train_in_fork(run, config, None)[0] == 0
        print(json.dumps({"run": str(run), "killed_after_epochs": after}), flush=True)


def train_in_fork(run: Path, config: TrainConfig, dies_after_s: float | None) -> tuple[int, float]:
    """Train or resume to the end, or until the moment; exit status and seconds."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(run, config, resume=is_begun(run))
            code = 0
        finally:
            os._exit(code)
    if dies_after_s is not None:
        time.sleep(dies_after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - started


def n_lines(run: Path) -> int:
    history = run / "history.jsonl"
    return len(history.read_text("utf-8").splitlines()) if history.exists() else 0


if __name__ == "__main__":
    main(from_toml(TrainConfig, Path(sys.argv[1])), Path(sys.argv[2]), *map(int, sys.argv[3:]))

"""A trainer that is killed: run as a script, which trains in forks of itself.

``killed_trainer.py CONFIG FOLDER SEED N``: for each of N runs, training is killed (SIGKILL, nothing
is tidied) up to three times and resumed until it ends; a line of JSON a run says how often it was
killed and after which epoch. A moment, drawn from the seed, is a time after an epoch's end, so that
a machine that is slow for a while is hit all the same. Forks share what is loaded already: training
costs its own time and not that of loading torch.
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

from virchow_st.config import TrainConfig
from virchow_st.run.folder import is_begun
from virchow_st.settings import from_toml
from virchow_st.training import schedule
from virchow_st.training.train import train

STEPS = 3
PEEK = os.WEXITED | os.WNOHANG | os.WNOWAIT  # whether it has ended, which stays to be asked


def main(config: TrainConfig, folder: Path, seed: int, n_runs: int) -> None:
    rng = random.Random(seed)
    torch.set_num_threads(1)
    schedule._LEAST_STEPS_PER_EPOCH = STEPS
    assert train_in_fork(folder / "whole", config, None) == 0, "what nothing happens to failed"
    an_epoch = json.loads((folder / "whole/history.jsonl").read_text("utf-8").splitlines()[-1])
    for i in range(n_runs):
        run, after = folder / f"run{i}", []
        for _ in range(3):
            dies = n_lines(run) + rng.randrange(2), rng.uniform(0, an_epoch["seconds"])
            status = train_in_fork(run, config, dies)
            if status == 0:
                break
            assert status == -signal.SIGKILL, status
            after.append(n_lines(run))
        else:
            assert train_in_fork(run, config, None) == 0
        print(json.dumps({"run": str(run), "killed_after_epochs": after}), flush=True)


def train_in_fork(run: Path, config: TrainConfig, dies: tuple[int, float] | None) -> int:
    """Train or resume, to the end or until some seconds after an epoch; returns the exit status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(run, config, resume=is_begun(run))
            code = 0
        finally:
            os._exit(code)
    if dies is not None:
        epochs, seconds = dies
        while n_lines(run) < epochs and os.waitid(os.P_PID, child, PEEK) is None:
            time.sleep(0.001)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def n_lines(run: Path) -> int:
    history = run / "history.jsonl"
    return len(history.read_text("utf-8").splitlines()) if history.exists() else 0


if __name__ == "__main__":
    main(from_toml(TrainConfig, Path(sys.argv[1])), Path(sys.argv[2]), *map(int, sys.argv[3:]))

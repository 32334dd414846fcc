"""One of several processes that train together, as torchrun starts them; run as a script.

``joined_trainer.py FAULT CONFIG RUN [FAULT CONFIG RUN …]`` trains each run, or resumes it, and goes
on after one that is refused. FAULT is what goes wrong in the second process: ``nothing``,
``no-store`` (it cannot open the stores) or ``dies`` (it ends without a word at the fifth step).
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError, StoreError, VirchowSTError
from virchow_st.run.folder import is_begun
from virchow_st.runtime.distributed import process_group
from virchow_st.settings import from_toml
from virchow_st.training import schedule
from virchow_st.training.learner import Learner
from virchow_st.training.train import train

STEPS = 2
DIED = 9


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    schedule._LEAST_STEPS_PER_EPOCH = STEPS
    with process_group() as processes:
        for fault, config, run in zip(*(iter(arguments),) * 3, strict=True):
            settings = from_toml(TrainConfig, Path(config))
            resume = processes.from_first(partial(is_begun, Path(run)))
            with ExitStack() as faults:
                if not processes.is_first:
                    bring_about(fault, faults)
                try:
                    train(Path(run), settings, resume=resume, processes=processes)
                except (ConfigError, StoreError) as e:
                    print(f"error: {e}", file=sys.stderr)
                except SystemExit as e:
                    if e.code != 2:
                        raise


def bring_about(fault: str, faults: ExitStack) -> None:
    real = Learner.step

    def lost(path: str) -> None:
        raise StoreError(f"{path}: no such store")

    def step(self: Learner, number: int, *rest: object) -> None:
        if number == 4:
            os._exit(DIED)
        real(self, number, *rest)  # type: ignore[arg-type]

    if fault == "no-store":
        faults.enter_context(patch("virchow_st.training.train.open_store", lost))
    elif fault == "dies":
        faults.enter_context(patch.object(Learner, "step", step))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except VirchowSTError as e:
        sys.exit(f"error: {e}")

"""Stops a training abruptly in the same process, as if the process had been killed."""

from __future__ import annotations


class Killed(BaseException):
    """An exception that no code catches."""


class DiesAfterEpoch:
    """A `Progress` that raises `Killed` when the training reports the end of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def note(self, text: str) -> None:
        if text.startswith(f"epoch {self.epoch}/"):
            raise Killed

    def warn(self, text: str) -> None:
        pass

    def step(self, done: int, total: int, unit: str, detail: str = "") -> None:
        pass

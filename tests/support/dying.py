"""A training that is stopped from outside, in the same process."""

from __future__ import annotations


class Killed(BaseException):
    """What nothing catches."""


class DiesAfterEpoch:
    """A listener whose death ends the training that it listens to, once an epoch is told."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def note(self, text: str) -> None:
        if text.startswith(f"epoch {self.epoch}/"):
            raise Killed

    def warn(self, text: str) -> None:
        pass

    def step(self, done: int, total: int, unit: str, detail: str = "") -> None:
        pass

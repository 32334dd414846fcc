"""Progress reporting for long jobs, independent of how it is displayed."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What a long job calls; the command line shows it, tests and notebooks may ignore it."""

    def note(self, text: str) -> None:
        """Say one line."""

    def warn(self, text: str) -> None:
        """Say one line that should not be overlooked."""

    def step(self, done: int, total: int, unit: str, detail: str = "") -> None:
        """``done`` of ``total`` units are done; ``detail`` is the latest figure worth showing."""


class Silent:
    """A listener that ignores everything."""

    def note(self, text: str) -> None:
        """Ignore."""

    def warn(self, text: str) -> None:
        """Ignore."""

    def step(self, done: int, total: int, unit: str, detail: str = "") -> None:
        """Ignore."""


SILENT = Silent()

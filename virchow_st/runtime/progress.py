"""Progress reporting for long jobs, independent of how it is displayed."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the reports of a long job; the command line displays them."""

    def note(self, text: str) -> None:
        """Report one line of information."""

    def warn(self, text: str) -> None:
        """Report one line that the user should not overlook."""

    def step(self, done: int, total: int, unit: str, detail: str = "") -> None:
        """Report progress.

        Args:
            done: Number of units done.
            total: Number of units in all.
            unit: What is counted, such as ``patches``.
            detail: Further information to show, such as the current loss.
        """


class Silent:
    """A `Progress` that ignores all reports."""

    def note(self, text: str) -> None:
        """Ignore."""

    def warn(self, text: str) -> None:
        """Ignore."""

    def step(self, done: int, total: int, unit: str, detail: str = "") -> None:
        """Ignore."""


class Recording:
    """A `Progress` that collects notes and warnings, to read or repeat them later.

    Attributes:
        lines: Pairs (whether it is a warning, text), in the order in which they were reported.

    Example:
        >>> recording = Recording()
        >>> recording.note("9 patches")
        >>> recording.warn("an odd image")
        >>> recording.notes, recording.warnings
        (['9 patches'], ['an odd image'])
    """

    def __init__(self) -> None:
        self.lines: list[tuple[bool, str]] = []

    def note(self, text: str) -> None:
        """Collect a note."""
        self.lines.append((False, text))

    def warn(self, text: str) -> None:
        """Collect a warning."""
        self.lines.append((True, text))

    def step(self, done: int, total: int, unit: str, detail: str = "") -> None:
        """Ignore."""

    @property
    def notes(self) -> list[str]:
        """Texts of the notes."""
        return [text for is_warning, text in self.lines if not is_warning]

    @property
    def warnings(self) -> list[str]:
        """Texts of the warnings."""
        return [text for is_warning, text in self.lines if is_warning]

    def repeat(self, progress: Progress) -> None:
        """Report all lines to another `Progress`."""
        for is_warning, text in self.lines:
            (progress.warn if is_warning else progress.note)(text)


SILENT = Silent()

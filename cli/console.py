"""Thin wrapper around the terminal: results go to stdout, everything else to stderr."""

from __future__ import annotations

import codecs
import json
import sys
import time
from io import TextIOWrapper
from types import TracebackType
from typing import Any, Literal

from rich.box import HORIZONTALS
from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from virchow_st.names import is_plain, shown

_PLAIN_LINE_EVERY_S = 10.0


class _Plain(RichConsole):
    """Prints control characters in names as escapes such as ``\\x1b``, without effect."""

    def render_str(self, text: str, **options: Any) -> Text:
        """See rich; it is called for every text that is printed and every cell of a table."""
        return super().render_str(shown(text), **options)


class Console:
    """Prints notes, warnings, progress and tables (a `virchow_st.runtime.progress.Progress`).

    On a terminal, progress is shown as a bar with rate and time left; elsewhere as plain lines: the
    first, the last and one every ten seconds.

    Args:
        quiet: Print only warnings, errors and results.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        # Paths and names are printed verbatim: "[" must not be markup nor ":cat:" an emoji.
        plain: dict[str, Any] = {"highlight": False, "soft_wrap": True}
        plain |= {"markup": False, "emoji": False}
        self._out = _Plain(**plain)
        self._err = _Plain(stderr=True, **plain)
        self._bar: RichProgress | None = None
        self._started = 0.0
        self._first = 0
        self._last_line = 0.0
        self._last_done = 0

    # --- reports of a running job ---------------------------------------------------------------

    def note(self, text: str) -> None:
        """Print one line of information, unless quiet."""
        if not self.quiet:
            self._err.print(text)

    def warn(self, text: str) -> None:
        """Print one line of warning, even when quiet."""
        self._err.print(f"warning: {_one_line(text)}", style="yellow")

    def error(self, text: str) -> None:
        """Print one line that describes an error."""
        self._err.print(f"error: {_one_line(text)}", style="bold red")

    def step(self, done: int, total: int, unit: str, detail: str = "") -> None:
        """Report progress; a smaller ``done`` than before starts a new job.

        Args:
            done: Number of units done.
            total: Number of units in all.
            unit: What is counted, such as ``patches``.
            detail: Further information, such as the loss.
        """
        now, detail = time.monotonic(), shown(detail)
        if self._last_done == 0 or done <= self._last_done:
            self._started, self._first = now, done
            self._last_line = 0.0
        self._last_done = 0 if done >= total else done
        if self.quiet:
            return
        if self._err.is_terminal:
            self._step_bar(done, total, unit, detail)
        elif done >= total or now - self._last_line >= _PLAIN_LINE_EVERY_S:
            self._last_line = now
            rate, left = "", ""
            if done > self._first and now > self._started:  # no rate is known at the first report
                per_s = (done - self._first) / (now - self._started)
                rate = f", {per_s:.3g}/s"
                if done < total:
                    left = f", {(total - done) / per_s:.0f} s left"
            self._err.print(f"  {done}/{total} {unit}{rate}{left}  {detail}".rstrip())

    def _step_bar(self, done: int, total: int, unit: str, detail: str) -> None:
        if self._bar is None:
            self._bar = RichProgress(
                TextColumn("  {task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}", markup=False),
                console=self._err,
            )
            self._bar.add_task(unit, total=total, rate="", detail="")
            self._bar.start()
        elapsed = time.monotonic() - self._started
        rate = f"{(done - self._first) / elapsed:.1f}/s" if elapsed > 0.5 else ""
        task = self._bar.tasks[0].id
        self._bar.update(task, total=total, completed=done, rate=rate, detail=detail)
        if done >= total:
            self.close()

    def close(self) -> None:
        """End the progress bar, so that further output starts on a new line."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- results of a command -------------------------------------------------------------------

    def result(self, text: str) -> None:
        """Print one line of the result to stdout."""
        self._out.print(text)

    def table(
        self,
        title: str,
        columns: list[str],
        rows: list[list[str]],
        sections: tuple[int, ...] = (),
        caption: str = "",
        justify: Literal["left", "right"] = "right",
        styles: dict[int, str] | None = None,
    ) -> None:
        """Print a table to stdout.

        Args:
            title, caption: Texts above and below the table.
            columns: Column headings; the first column is aligned left, the others by ``justify``.
            rows: Cells as texts, one list per row.
            sections: Indices of rows that are followed by a horizontal rule.
            justify: ``right`` for numbers, ``left`` for words.
            styles: Rich style of some rows by index; a table with styles has no vertical lines, so
                that many numbers fit into 80 columns.
        """
        table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
        if styles is not None:
            table.box, table.show_edge, table.padding = HORIZONTALS, False, (0, 1, 0, 0)
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else justify, overflow="fold")
        for i, row in enumerate(rows):
            table.add_row(*row, end_section=i in sections, style=(styles or {}).get(i))
        self._out.print(table)

    def json(self, content: Any) -> None:
        """Print JSON to stdout, for programs."""
        text = json.dumps(content, indent=1, ensure_ascii=False)
        if not is_plain(text.replace("\n", "")):
            text = json.dumps(content, indent=1)
        self._out.print(text)


def size_text(n_bytes: int) -> str:
    """A number of bytes for people.

    >>> size_text(1536), size_text(3 << 20)
    ('1.5 KiB', '3.0 MiB')
    """
    return f"{n_bytes / 2**20:.1f} MiB" if n_bytes >= 2**20 else f"{n_bytes / 2**10:.1f} KiB"


def _one_line(text: str) -> str:
    return " ".join(text.split())


_IN_ASCII = str.maketrans(
    {"µ": "u", "×": "x", "–": "-", "—": "-", "−": "-", "²": "2", "°": " deg", "≥": ">=", "≤": "<=",
     "±": "+-", "→": "->", "…": "...", "‘": "'", "’": "'", "“": '"', "”": '"', "ρ": "rho"}
)  # fmt: skip


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an output cannot encode by similar ones, or else by ``\\u…``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_IN_ASCII)
    return text.encode("ascii", "backslashreplace").decode(), error.end


def print_anything() -> None:
    """Let standard output and error accept any text, whatever the locale's encoding."""
    codecs.register_error("virchow_st.likeness", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="virchow_st.likeness")

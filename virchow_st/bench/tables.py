"""Benchmark tables: timing, description of the machine, and display."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from virchow_st.runtime.devices import core_count
from virchow_st.runtime.software import versions

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A table of measurements.

    A cell is a text, a number or None (not measured). Numbers stay numbers in JSON and are shown
    with three digits, so the unit belongs into the column heading: ``"ours, ms"``. A column whose
    heading begins with ``ratio`` is shown with ``×``, one whose heading begins with ``share`` as a
    percentage of a number from 0 to 1.

    Attributes:
        title: What was measured, in one line.
        columns: Column headings.
        rows: Rows with one cell per column; the first cell names the row.
        notes: Lines below the table: sizes, targets, and what was left out and why.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: expected {len(self.columns)} cells in every row; "
                    f"got {list(row)}"
                )

    def texts(self) -> list[list[str]]:
        """Cells as they are displayed."""
        return [
            [_text(cell, head) for cell, head in zip(row, self.columns, strict=True)]
            for row in self.rows
        ]

    def content(self) -> dict[str, Any]:
        """The table for JSON; NaN and infinity, which JSON lacks, become null."""
        rows = [
            [None if isinstance(c, float) and not math.isfinite(c) else c for c in row]
            for row in self.rows
        ]
        return {**asdict(self), "rows": rows}


def _text(cell: Cell, head: str) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    if head.startswith("share"):
        return f"{100 * cell:.3g} %" if cell < 1 else f"{100 * cell:.0f} %"
    return _number(cell) + ("×" if head.startswith("ratio") else "")


def _number(x: float) -> str:
    """Format a number with three digits; whole numbers in full, common sizes without exponent."""
    if isinstance(x, int):
        return f"{x:,}"
    if not math.isfinite(x):
        return "–"
    size = abs(x)
    if size >= 100:
        return f"{x:,.0f}"
    if size >= 10:
        return f"{x:.1f}"
    return f"{x:.2f}" if size >= 1 else f"{x:.3f}" if size >= 0.01 or not size else f"{x:.2g}"


def interleaved(
    *functions: Callable[[], Any],
    rounds: int = 5,
    burst: int = 1,
    warm_up: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Seconds per call of each function: the best of ``rounds``, measured in alternation.

    Alternation lets a slow phase of the machine affect all functions; the best time is used because
    other programs can only add time.

    Args:
        functions: Functions without arguments; their results are discarded.
        rounds: Timed rounds.
        burst: Calls per round that are timed together, for functions that take microseconds.
        warm_up: Call each function once before, to compile kernels and fill caches.
        clock: Seconds since some moment; ``time.process_time`` leaves out what other programs take,
            and adds up threads.

    Returns:
        One number per function, in their order.
    """
    best = [math.inf] * len(functions)
    if warm_up:
        for function in functions:
            function()
    for _ in range(rounds):
        for i, function in enumerate(functions):
            start = clock()
            for _ in range(burst):
                function()
            best[i] = min(best[i], (clock() - start) / burst)
    return best


def machine(*packages: str) -> dict[str, str | int | float]:
    """Describe the machine: processor, cores and threads, memory, GPU, versions.

    Call it after the measurements: threads and GPU are those of the libraries loaded by then.

    Args:
        packages: Distributions to list besides numpy, numba and torch; absent ones are left out.
    """
    about: dict[str, str | int | float] = {
        "cpu": _cpu_model(),
        "cores": core_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
    }
    for name in ("numba", "torch"):
        if (module := sys.modules.get(name)) is not None:
            about[f"{name}_threads"] = module.get_num_threads()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    about["python"] = platform.python_version()
    about |= versions(("numpy", "numba", "torch", *packages))
    return about


def machine_line(about: dict[str, Any]) -> str:
    """Description of the machine in one line."""
    return ", ".join(
        str(value) if name in ("cpu", "gpu") else f"{name.replace('_', ' ')} {value}"
        for name, value in about.items()
    )


def document(name: str, tables: Sequence[Table], packages: Sequence[str] = ()) -> dict[str, Any]:
    """Content of ``--json``: the name, the machine and the tables.

    Args:
        name: Name of the benchmark.
        tables: Its tables.
        packages: As for `machine`.
    """
    return {
        "name": name,
        "machine": machine(*packages),
        "tables": [table.content() for table in tables],
    }


def _cpu_model() -> str:
    """Name of the processor as the kernel reports it, else the architecture."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()

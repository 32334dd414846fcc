"""Commands that run in forks of this process, and may be killed."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Running:
    """A command that runs in a fork of this process."""

    process: int
    log: Path


_started = 0


def start(
    arguments: list[object], logs: Path, before: Callable[[], None] = lambda: None, largest: int = 0
) -> Running:
    """Start a command; ``largest`` limits the bytes of any file that it writes."""
    global _started
    _started += 1
    log = logs / f"log{_started}"
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return Running(process, log)
    os.setpgid(0, 0)
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = ["vst", *map(str, arguments)]
    before()
    if largest:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    importlib.import_module("virchow_st_cli.main").main()
    raise AssertionError("main ends the process")


def ended(running: Running, kill_after: float | None = None) -> tuple[int, str, str]:
    """Exit status (negative for a signal), standard output and standard error of a command."""
    deadline = time.monotonic() + (600 if kill_after is None else kill_after)
    status = 0
    while True:
        process, status = os.waitpid(running.process, os.WNOHANG)
        if process:
            break
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.process, signal.SIGKILL)
            _, status = os.waitpid(running.process, 0)
            break
        time.sleep(0.005)
    texts = []
    for name in ("out", "err"):
        file = Path(f"{running.log}.{name}")
        texts.append(file.read_text("utf-8", "replace") if file.exists() else "")
        file.unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(status), texts[0], texts[1]

"""A small job for cohorts: takes processor time, writes a file per item, fails where it is told."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virchow_st.cohort import Done, Item
from virchow_st.errors import SlideError
from virchow_st.runtime.lock import is_dead
from virchow_st.runtime.progress import Progress


@dataclass
class Hashing:
    """Hashes an item's key over and over, and writes the digest to ``out/KEY``.

    ``log/`` gets a file each time that an item's work begins and each time that it is finished. An
    item's content has ``fault``: ``refuse`` and ``crash`` raise, ``kill`` kills the worker.
    """

    folder: Path
    rounds: int = 20_000
    no_encoder: bool = False

    def settings(self) -> Mapping[str, Any]:
        return {"rounds": self.rounds}

    def is_there(self, item: Item) -> bool:
        return (self.folder / "out" / item.key).exists()

    def begin(self, progress: Progress) -> None:
        if self.no_encoder:
            raise SlideError("weights: not found; give --weights")
        progress.warn("for research only")

    def prepare(self, item: Item, progress: Progress) -> str:
        progress.note(f"opening {item.key}")
        return item.key

    def do(self, item: Item, prepared: Any, attempt: int, progress: Progress) -> Done:
        out = self.folder / "out" / item.key
        if out.exists():
            return Done("was complete")
        self._log("begun", item)
        fault = item.content.get("fault")
        if fault == "refuse":
            raise SlideError(f"{item.key}: damaged; scan it again")
        if fault == "crash":
            raise ZeroDivisionError("nobody\nforesaw this")
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "odd":
            progress.warn("an odd image")
        aside = out.with_name(f".{uuid.uuid4().hex}")
        aside.write_bytes(expected(prepared, self.rounds))
        self._log("finished", item)
        os.link(aside, out)  # fails where another worker has done it
        aside.unlink()
        return Done("complete", {"n": len(item.key)})

    def _log(self, what: str, item: Item) -> None:
        (self.folder / "log" / f"{what} {item.key} {os.getpid()} {uuid.uuid4().hex}").touch()


def expected(key: str, rounds: int) -> bytes:
    digest = key.encode()
    for _ in range(rounds):
        digest = hashlib.sha256(digest).digest()
    return digest


def make(
    folder: Path, n: int, rounds: int = 2000, kind: type[Hashing] = Hashing, **faults: str
) -> tuple[Hashing, list[Item]]:
    """A job and its items ``s0``, ``s1``, …, with faults by key."""
    for name in ("out", "log"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    keys = [f"s{i}" for i in range(n)]
    items = [Item(key, {"fault": faults.get(key, "")}) for key in keys]
    return kind(folder, rounds), items


def times(folder: Path, what: str) -> dict[str, int]:
    """How often the work on each item was begun or finished."""
    found: dict[str, int] = {}
    for path in (folder / "log").iterdir():
        event, key, *_ = path.name.split()
        if event == what:
            found[key] = found.get(key, 0) + 1
    return found


def workers_of(process: int) -> list[int]:
    """Processes below one that do the work: spawned, submitted, or Ray's."""
    listed = subprocess.run(
        ["ps", "-ewwo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    children: dict[int, list[tuple[int, str]]] = {}
    for line in listed.splitlines():
        below, parent, arguments = line.split(None, 2)
        children.setdefault(int(parent), []).append((int(below), arguments))
    found: list[int] = []
    waiting = [process]
    while waiting:
        for pid, arguments in children.get(waiting.pop(), []):
            waiting.append(pid)
            marks = ("spawn_main", "submitit.core._submit", "ray::work")
            if any(mark in arguments for mark in marks):
                found.append(pid)
    return found


def at_work(claims: Path, most_attempts: int) -> list[int]:
    """Processes of the living workers that are at an item which was not tried more often."""
    found = []
    for name in os.listdir(claims) if claims.is_dir() else []:
        attempt = int(name.rpartition("@")[2]) if "@" in name else 0
        with contextlib.suppress(OSError, ValueError):  # of an item that was settled just now
            claim = json.loads((claims / name).read_text())
            if (
                0 < attempt <= most_attempts
                and claim["state"] == "at work"
                and not is_dead(claim["who"])
            ):
                found.append(claim["process"])
    return found


def run_script(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a scheduler as a process of its own."""
    support = str(Path(__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": support}, start_new_session=True,
        # What a shell started in the background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def ended(processes: Sequence[subprocess.Popen[str]], timeout_s: float = 120) -> list[str]:
    """Standard output of processes that have to end well."""
    deadline, answers = time.monotonic() + timeout_s, []
    for process in processes:
        out, err = process.communicate(timeout=max(1, deadline - time.monotonic()))
        assert process.returncode == 0, err
        answers.append(out)
    return answers


def stopped_while_ending() -> str:
    """Have this process get SIGTERM after its work, while Python ends."""
    atexit.register(os.kill, os.getpid(), signal.SIGTERM)
    return "done"

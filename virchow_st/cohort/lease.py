"""Claims on items, held by files in a shared folder: an item has one worker at a time.

A claim is the file ``NAME@N``, where N counts the workers that have claimed the item. It is created
exclusively, which every shared file system does at once for all its nodes, and its holder renews it
by touching it. If it is not renewed any longer, the next worker creates ``NAME@(N + 1)``: of two
that try, one succeeds, and no file is ever taken away from a holder. A holder that finds a later
claim than its own has lost the item.

Nodes need no common clock: a claim has lapsed when the one who looks has seen it unchanged for as
long as it is good for, by its own clock; or at once when its process is known to be dead on the
same machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from virchow_st.runtime.lock import is_dead, own_mark

AHEAD, AT_WORK, RELEASED = "ahead", "at work", "released"
"""States of a claim: opened ahead of its turn, being done, given back."""


@dataclass
class Lease:
    """A claim that this process holds.

    Attributes:
        file: name of the item's files.
        path: of the claim.
        attempt: its number, from 1.
        lost: how many earlier claims were neither settled nor given back: their workers died.
        deaths: how many of those workers were at work on this item, not on the one before it.
        seconds: how long the claim is good for without renewal.
        is_lost: whether another worker has claimed the item since.
    """

    file: str
    path: Path
    attempt: int
    lost: int
    deaths: int
    seconds: float
    is_lost: bool = False

    def renew(self) -> bool:
        """Renew the claim; False if another worker has claimed the item, or it is settled."""
        if _path(self.path.parent, self.file, self.attempt + 1).exists():
            self.is_lost = True
        try:
            os.utime(self.path)
        except FileNotFoundError:
            self.is_lost = True
        except OSError:  # the disk is away for a moment; the next renewal may succeed
            pass
        return not self.is_lost

    def begin(self) -> None:
        """Say that the item's turn has come."""
        self._say(AT_WORK)

    def release(self) -> None:
        """Give the item back at once, for another worker."""
        self._say(RELEASED)

    def _say(self, state: str) -> None:
        aside = self.path.with_name(f".{uuid.uuid4().hex}")
        with contextlib.suppress(OSError):
            aside.write_bytes(_content(state, self.seconds))
            os.replace(aside, self.path)

    def remove(self) -> None:
        """Remove the item's claims, after what became of it is written."""
        _remove(self.path.parent, self.file, self.attempt)


@dataclass(frozen=True)
class Claim:
    """A claim as another process finds it: its number, its content, and when it was renewed."""

    attempt: int
    content: bytes
    renewed_ns: int

    @property
    def is_released(self) -> bool:
        """Whether its holder gave it back."""
        return self._value("state") == RELEASED

    @property
    def was_at_work(self) -> bool:
        """Whether the item's turn had come."""
        return self._value("state") == AT_WORK

    @property
    def seconds(self) -> float:
        """How long it is good for without renewal."""
        found = self._value("seconds")
        return float(found) if isinstance(found, int | float) else 0.0

    @property
    def host(self) -> str:
        """The machine of its holder."""
        return str(self._value("host") or "a machine that is not known")

    @property
    def is_dead(self) -> bool:
        """Whether its holder is known to be dead, which is seen on the same machine only."""
        return is_dead(str(self._value("who") or ""))

    def _value(self, name: str) -> object:
        try:
            return json.loads(self.content)[name]
        except (ValueError, KeyError, TypeError):  # its writer died within the write
            return None


class Leases:
    """The claims on a cohort's items, as one process sees them.

    Args:
        folder: of the claims, on a disk that all workers share.
        seconds: how long a claim is good for without renewal.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        self._seen: dict[str, tuple[Claim, float]] = {}

    def latest(self) -> dict[str, int]:
        """Number of the latest claim of every item that has one."""
        found: dict[str, int] = {}
        for name in os.listdir(self._folder):
            file, _, number = name.rpartition("@")
            if file and number.isdecimal():
                found[file] = max(found.get(file, 0), int(number))
        return found

    def remove_of(self, files: Container[str]) -> None:
        """Remove the claims of items that are settled.

        A worker that was killed, or stopped, just after it had written what became of its item left
        them.
        """
        for file, latest in self.latest().items():
            if file in files:
                _remove(self._folder, file, latest)

    def is_free(self, file: str, latest: int) -> bool:
        """Whether an item can be claimed.

        Args:
            file: name of the item's files.
            latest: number of its latest claim, 0 if there is none.
        """
        if latest == 0:
            return True
        claim = self._read(file, latest)
        if claim is None or claim.is_released or claim.is_dead:
            return True
        now = time.monotonic()
        before, since = self._seen.setdefault(file, (claim, now))
        if before != claim:
            self._seen[file] = claim, now
            return False
        return now - since > (claim.seconds or self._seconds)

    def claim(self, file: str, latest: int) -> Lease | None:
        """Claim an item that is free; None if another worker was faster.

        Args:
            file: name of the item's files.
            latest: number of its latest claim, as `is_free` was asked.
        """
        path = _path(self._folder, file, latest + 1)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return None
        try:
            os.write(descriptor, _content(AHEAD, self._seconds))
        finally:
            os.close(descriptor)
        before = [self._read(file, attempt) for attempt in range(1, latest + 1)]
        lost = [claim for claim in before if claim is not None and not claim.is_released]
        deaths = sum(claim.was_at_work for claim in lost)
        return Lease(file, path, latest + 1, len(lost), deaths, self._seconds)

    def was_lost(self, file: str, latest: int) -> bool:
        """Whether the worker that last claimed a free item died."""
        claim = self._read(file, latest) if latest else None
        return claim is not None and not claim.is_released

    def last_host(self, file: str, attempt: int) -> str:
        """The machine of the worker that held an earlier claim."""
        claim = self._read(file, attempt)
        return claim.host if claim else "a machine that is not known"

    def _read(self, file: str, attempt: int) -> Claim | None:
        # Opened anew each time: opening is when a network file system looks at its server.
        try:
            with open(_path(self._folder, file, attempt), "rb") as opened:
                return Claim(attempt, opened.read(), os.fstat(opened.fileno()).st_mtime_ns)
        except OSError:
            return None


def _path(folder: Path, file: str, attempt: int) -> Path:
    return folder / f"{file}@{attempt}"


def _remove(folder: Path, file: str, latest: int) -> None:
    for attempt in range(latest, 0, -1):
        with contextlib.suppress(OSError):
            _path(folder, file, attempt).unlink()


def _content(state: str, seconds: float) -> bytes:
    who = own_mark()
    return json.dumps(
        {"state": state, "host": socket.gethostname(), "process": os.getpid(), "seconds": seconds,
         "who": who}
    ).encode()  # fmt: skip

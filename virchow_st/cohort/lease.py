"""Claims on items, held by files that all workers see: an item has one worker at a time.

A claim is the file ``NAME@N``, where N counts the workers that have claimed the item. It is created
exclusively, and its holder renews it (`virchow_st.cohort.files`, on disk and in object storage). If
it is not renewed any longer, the next worker creates ``NAME@(N + 1)``: of two that try, one
succeeds, and no file is ever taken away from a holder. A holder that finds a later claim than its
own has lost the item.

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
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

from virchow_st.cohort.files import Files, files_at
from virchow_st.errors import VirchowSTError
from virchow_st.runtime.lock import is_dead, own_mark

AHEAD, AT_WORK, RELEASED = "ahead", "at work", "released"
"""States of a claim: opened ahead of its turn, being done, given back."""


@dataclass
class Lease:
    """A claim that this process holds.

    Attributes:
        file: name of the item's files.
        files: all claims.
        attempt: its number, from 1.
        lost: how many earlier claims were neither settled nor given back: their workers died.
        deaths: how many of those workers were at work on this item, not on the one before it.
        seconds: how long the claim is good for without renewal.
        is_lost: whether another worker has claimed the item since.
    """

    file: str
    files: Files = field(repr=False)
    attempt: int
    lost: int
    deaths: int
    seconds: float
    is_lost: bool = False

    def renew(self) -> bool:
        """Renew the claim; False if another worker has claimed the item, or it is settled."""
        # Where the disk or storage is away for a moment, the next renewal may succeed.
        with contextlib.suppress(VirchowSTError):
            later = self.files.seen(_name(self.file, self.attempt + 1))
            if later is not None or not self.files.renew(_name(self.file, self.attempt)):
                self.is_lost = True
        return not self.is_lost

    def begin(self) -> None:
        """Say that the item's turn has come."""
        self._say(AT_WORK)

    def release(self) -> None:
        """Give the item back at once, for another worker."""
        self._say(RELEASED)

    def _say(self, state: str) -> None:
        with contextlib.suppress(VirchowSTError):
            self.files.say(_name(self.file, self.attempt), _content(state, self.seconds))

    def remove(self) -> None:
        """Remove the item's claims, after what became of it is written."""
        _remove(self.files, self.file, self.attempt)


@dataclass(frozen=True)
class Claim:
    """A claim as another process finds it: its content, and what changes when it is renewed."""

    content: bytes
    renewed: object

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
        folder: of the claims, on a disk that all workers share, or its URL.
        seconds: how long a claim is good for without renewal.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self._files, self._seconds = files_at(folder), seconds
        self._seen: dict[str, tuple[Claim, float]] = {}

    def latest(self) -> dict[str, int]:
        """Number of the latest claim of every item that has one."""
        found: dict[str, int] = {}
        for name in self._files.names(""):
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
                _remove(self._files, file, latest)

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
        if not self._files.claim(_name(file, latest + 1), _content(AHEAD, self._seconds)):
            return None
        before = [self._read(file, attempt) for attempt in range(1, latest + 1)]
        lost = [claim for claim in before if claim is not None and not claim.is_released]
        deaths = sum(claim.was_at_work for claim in lost)
        return Lease(file, self._files, latest + 1, len(lost), deaths, self._seconds)

    def was_lost(self, file: str, latest: int) -> bool:
        """Whether the worker that last claimed a free item died."""
        claim = self._read(file, latest) if latest else None
        return claim is not None and not claim.is_released

    def last_host(self, file: str, attempt: int) -> str:
        """The machine of the worker that held an earlier claim."""
        claim = self._read(file, attempt)
        return claim.host if claim else "a machine that is not known"

    def _read(self, file: str, attempt: int) -> Claim | None:
        found = self._files.seen(_name(file, attempt))
        return None if found is None else Claim(*found)


def _name(file: str, attempt: int) -> str:
    return f"{file}@{attempt}"


def _remove(files: Files, file: str, latest: int) -> None:
    for attempt in range(latest, 0, -1):
        with contextlib.suppress(VirchowSTError):
            files.drop(_name(file, attempt))


def _content(state: str, seconds: float) -> bytes:
    who = own_mark()
    return json.dumps(
        {"state": state, "host": socket.gethostname(), "process": os.getpid(), "seconds": seconds,
         "who": who}
    ).encode()  # fmt: skip

"""The processes that ``torchrun`` starts for one job, and work shared out among them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

_POLL_S = 0.2


@dataclass(frozen=True)
class Rank:
    """One process among others.

    Attributes:
        number: from 0 to ``count - 1``.
        count: processes of the job; 1 without torchrun.
        local: number on this machine.
        local_count: processes on this machine.
    """

    number: int = 0
    count: int = 1
    local: int = 0
    local_count: int = 1

    @classmethod
    def here(cls) -> Rank:
        """The process that calls, as torchrun's environment variables have it."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        given = [os.environ.get(name) for name in names]
        if not all(given):
            return cls()
        return cls(*(int(value) for value in given if value))

    def device(self, name: str) -> str:
        """The device of ``--device`` for this process, and torch's from now on.

        ``auto`` and ``cuda`` are shared out, a GPU each; any other name is taken at its word.
        """
        if self.count == 1 or name not in ("auto", "cuda"):
            return name
        import torch

        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if name == "auto" and n_devices == 0:
            return "cpu"
        if self.local < n_devices:  # else `pick_device` says what is wrong
            torch.cuda.set_device(self.local)  # or pinned memory would take room on the first
        return f"cuda:{self.local}"


class SharedWork:
    """Items 0, 1, 2, … that all ranks take from, each the next one when it is ready for it.

    No rank waits for another; only who collects the answers does, in the end.

    Args:
        rank: this process.
    """

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self._own: dict[int, str] = {}  # answers where there is no other rank

    @cached_property
    def _store(self) -> Store:
        """The key-value store by which torchrun's processes find each other."""
        from torch.distributed import PrefixStore, rendezvous

        store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=5)))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return PrefixStore(f"virchow_st/{attempt}", store)

    def take(self, n: int) -> Iterator[int]:
        """Those of ``n`` items that fall to this rank, one after another."""
        if self.rank.count == 1:
            yield from range(n)
            return
        while (item := self._store.add("taken", 1) - 1) < n:
            yield item

    def answer(self, item: int, text: str) -> None:
        """Say what became of an item, for `collect`."""
        if self.rank.count == 1:
            self._own[item] = text
        else:
            self._store.set(f"answer/{item}", text)

    def collect(self, n: int) -> list[str]:
        """All ranks' answers, waited for as long as it takes."""
        if self.rank.count == 1:
            return [self._own[item] for item in range(n)]
        keys = [f"answer/{item}" for item in range(n)]
        for key in keys:
            while not self._store.check([key]):
                time.sleep(_POLL_S)
        return [self._store.get(key).decode() for key in keys]

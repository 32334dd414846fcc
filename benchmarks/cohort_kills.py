"""Cohorts on workers: overhead per item, two workers against one, and what random kills cost.

``python benchmarks/cohort_kills.py FOLDER [--kills 50] [--json FILE]``. The job hashes, so that it
takes processor time and nothing else. Three measurements, each in a folder of its own:

- overhead: items that take no time, in this process and on one worker, in ms per item;
- two workers: 20 items of about 2 s on one worker and on two, beside the same work without any
  cohort on one core and on two, since two cores of a shared machine are seldom twice as fast;
- kills: 100 items of about 1 s on two workers that are killed at random; every item has to be
  there with its bytes, and none may be finished twice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virchow_st.cohort import Done, Item, run_cohort
from virchow_st.cohort.on_local import LocalExecutor, LocalWorker
from virchow_st.runtime.progress import Progress

N_ITEMS = 20


@dataclass
class Hashing:
    """Hashes an item's key ``rounds`` times and writes the digest."""

    folder: Path
    rounds: int

    def settings(self) -> Mapping[str, Any]:
        return {"rounds": self.rounds}

    def is_there(self, item: Item) -> bool:
        return (self.folder / item.key).exists()

    def begin(self, progress: Progress) -> None:
        pass

    def prepare(self, item: Item, progress: Progress) -> None:
        pass

    def do(self, item: Item, prepared: None, attempt: int, progress: Progress) -> Done:
        out = self.folder / item.key
        if out.exists():
            return Done("was complete")
        aside = self.folder / f".{uuid.uuid4().hex}"
        aside.write_bytes(hashed(item.key, self.rounds))
        os.link(aside, out)  # fails where the item has been done by another worker
        aside.unlink()
        return Done("complete")


def hashed(key: str, rounds: int) -> bytes:
    digest = key.encode()
    for _ in range(rounds):
        digest = hashlib.sha256(digest).digest()
    return digest


class Watched(LocalExecutor):
    """Keeps the workers that were started, so that they can be killed."""

    def __init__(self, n_workers: int) -> None:
        super().__init__(n_workers)
        self.workers: list[LocalWorker] = []

    def submit(self, function: Any, /, *arguments: Any) -> LocalWorker:
        worker = super().submit(function, *arguments)
        self.workers.append(worker)
        return worker


def run(folder: Path, n: int, rounds: int, executor: LocalExecutor | None, workers: int) -> float:
    """Seconds that a cohort takes."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    items = [Item(f"s{i}", {}) for i in range(n)]
    begun = time.monotonic()
    outcomes = run_cohort(
        items, Hashing(folder / "out", rounds), executor, folder / "state", n_workers=workers,
        most_deaths=10_000,
    )  # fmt: skip
    took = time.monotonic() - begun
    assert [o.state for o in outcomes] == ["done"] * n, outcomes
    for item in items:
        assert (folder / "out" / item.key).read_bytes() == hashed(item.key, rounds)
    return took


def plain(rounds: int, workers: int) -> float:
    """Seconds that the same work takes without a cohort, in processes that are running already."""
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(hashed, ["a"] * workers, [1] * workers))
        begun = time.monotonic()
        list(pool.map(hashed, [f"s{i}" for i in range(N_ITEMS)], [rounds] * N_ITEMS))
        return time.monotonic() - begun


def killed(folder: Path, rounds: int, n_kills: int, seed: int) -> dict[str, float]:
    """A cohort whose workers are killed at random; how many kills hit a worker at work."""
    rng, executor, done = random.Random(seed), Watched(2), threading.Event()
    hits = 0

    def kill() -> None:
        nonlocal hits
        while hits < n_kills and not done.wait(rng.uniform(0.3, 3.0)):
            alive = [w for w in executor.workers if not w.done()]
            if alive:
                os.kill(rng.choice(alive).process.pid or 0, signal.SIGKILL)
                hits += 1

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        took = run(folder, 5 * N_ITEMS, rounds, executor, 2)
    finally:
        done.set()
        thread.join()
    return {"kills": hits, "seconds": took, "workers": len(executor.workers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=201)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    folder: Path = chosen.folder
    begun = time.monotonic()
    hashed("a", 200_000)
    rounds = int(2.0 * 200_000 / (time.monotonic() - begun))
    many = 1000
    found: dict[str, Any] = {
        "overhead_ms_here": 1000 * run(folder / "here", many, 1, None, 1) / many,
        "overhead_ms_worker": 1000 * run(folder / "worker", many, 1, LocalExecutor(1), 1) / many,
    }
    for n in (1, 2):
        found[f"plain_{n}_s"] = plain(rounds, n)
        found[f"cohort_{n}_s"] = run(folder / f"on{n}", N_ITEMS, rounds, LocalExecutor(n), n)
    found["cohort_2_against_1"] = found["cohort_1_s"] / found["cohort_2_s"]
    found["plain_2_against_1"] = found["plain_1_s"] / found["plain_2_s"]
    # Shorter items, or on a busy machine none would be finished between two kills.
    found["killed"] = killed(folder / "killed", rounds // 2, chosen.kills, chosen.seed)
    text = json.dumps(found, indent=1)
    print(text)
    if chosen.json:
        chosen.json.write_text(text)


if __name__ == "__main__":
    main()

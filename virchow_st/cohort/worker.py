"""A worker: takes items of a cohort one after another, until there is none left that is free."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from virchow_st.cohort.job import Done, Item, Job, Outcome
from virchow_st.cohort.lease import Lease, Leases
from virchow_st.cohort.state import CohortState
from virchow_st.errors import VirchowSTError
from virchow_st.runtime.lock import BusyError
from virchow_st.runtime.progress import Progress, Recording

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0


@dataclass(frozen=True)
class Call:
    """One call of `virchow_st.cohort.run_cohort`; it goes to every worker.

    Attributes:
        name: tells the call from others.
        items: of the cohort, in the order in which they are taken.
        job: what is done for each.
        folder: of the state.
        n_workers: how many workers the call has.
        lease_s: seconds after which an item of a lost worker returns.
        most_deaths: workers that an item may cost before it counts as failed.
        hint: what a message about an error that nobody foresaw ends with.
    """

    name: str
    items: tuple[Item, ...]
    job: Job
    folder: Path
    n_workers: int
    lease_s: float
    most_deaths: int
    hint: str

    def state(self) -> CohortState:
        """The state on disk."""
        return CohortState(self.folder, self.items, self.job.settings())


@dataclass(frozen=True)
class Worked:
    """What a worker reports when it ends: how many items it took, and warnings about none."""

    n_items: int
    warnings: tuple[str, ...]


def work(call: Call, progress: Progress | None = None) -> Worked:
    """Take items and do them until none is free. Items that other workers hold are theirs.

    Args:
        call: what to do.
        progress: receives the job's reports; if None, they are kept in the items' marks.

    Raises:
        VirchowSTError: what all items need is not there.
    """
    begun = Recording()
    call.job.begin(progress or begun)
    n_items = 0
    claims = _Claims(call)
    with claims.renewed(), ThreadPoolExecutor(1, "prepare") as pool:
        coming = _begin(pool, call.job, claims.next())
        while coming is not None:
            lease, item, started, messages, prepared = coming
            lease.begin()
            prepared.exception()  # waits
            # An item that a worker died with is done alone, to see whether it is to blame.
            ahead = None if lease.lost else claims.next(ahead=True)
            coming = _begin(pool, call.job, ahead)
            outcome = _do(call, item, lease, started, messages, prepared, progress, pool)
            claims.settle(item, lease, outcome)
            n_items += 1
            del prepared
            if coming is None:
                coming = _begin(pool, call.job, claims.next())
    return Worked(n_items, tuple(begun.warnings))


def work_or_refuse(call: Call) -> Worked | VirchowSTError:
    """As `work`; an error that ends the whole cohort is returned, since some executors lose it."""
    try:
        return work(call)
    except VirchowSTError as e:
        return e


_Coming = tuple[Lease, Item, float, Recording, "Future[Any]"]


def _begin(pool: ThreadPoolExecutor, job: Job, taken: tuple[Lease, Item] | None) -> _Coming | None:
    if taken is None:
        return None
    lease, item = taken
    messages = Recording()
    return lease, item, time.monotonic(), messages, pool.submit(job.prepare, item, messages)


def _do(
    call: Call,
    item: Item,
    lease: Lease,
    started: float,
    messages: Recording,
    prepared: Future[Any],
    progress: Progress | None,
    pool: ThreadPoolExecutor,
) -> Outcome:
    """Do an item; an error of any kind is its outcome and ends nothing else."""
    reports: Progress = messages if progress is None else progress
    if progress is not None:
        progress.note(item.title or item.key)
        messages.repeat(progress)
    try:
        done = _do_when_free(call, item, lease, messages, prepared, reports, pool)
    except VirchowSTError as e:
        done, state = Done(" ".join(str(e).split())), "failed"
    except Exception as e:  # an unexpected error in one item must not end the whole cohort
        text = " ".join(f"{type(e).__name__}: {e}".split())
        done, state = Done(f"{text}; {call.hint}"), "failed"
    else:
        state = "done"
    if progress is not None:
        if state == "failed":
            progress.warn(done.text)
        else:
            progress.note(f"{item.key}: {done.text}")
    return Outcome(
        item.key,
        "done" if state == "done" else "failed",
        done.text,
        done.result,
        tuple(messages.warnings) if progress is None else (),
        socket.gethostname(),
        os.getpid(),
        round(time.monotonic() - started, 3),
        lease.attempt,
        call.name,
    )


def _do_when_free(
    call: Call,
    item: Item,
    lease: Lease,
    messages: Recording,
    prepared: Future[Any],
    reports: Progress,
    pool: ThreadPoolExecutor,
) -> Done:
    """Do an item; wait where another process is writing its output.

    That is mostly an earlier worker of the item that was taken for lost and lives: it stood still
    for longer than its claim is good for. It ends soon, or finishes the item. After as long as a
    claim is good for, `BusyError` is raised after all.
    """
    until, pause = time.monotonic() + call.lease_s, _FIRST_PAUSE_S
    while True:
        try:
            return call.job.do(item, prepared.result(), lease.attempt, reports)
        except BusyError:
            if lease.is_lost or time.monotonic() + pause > until:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
        prepared = pool.submit(call.job.prepare, item, messages)


class _Claims:
    """The claims of this worker; they are released where it is stopped."""

    def __init__(self, call: Call) -> None:
        self._call, self._state = call, call.state()
        self._leases = Leases(self._state.claims, call.lease_s)
        self._held: dict[str, Lease] = {}
        self._ended = threading.Event()

    def next(self, ahead: bool = False) -> tuple[Lease, Item] | None:
        """Claim the next free item; None if there is none.

        Args:
            ahead: for a worker that has an item in its hands; it leaves one for each of the other
                workers, and those alone that a worker has died with.
        """
        settled, latest = self._state.settled(), self._leases.latest()
        free = []
        for item in self._call.items:
            file = self._state.file_of[item.key]
            if file in settled or file in self._held:
                continue
            number = latest.get(file, 0)
            if self._leases.is_free(file, number) and not (
                ahead and self._leases.was_lost(file, number)
            ):
                free.append((item, file))
        if ahead and len(free) < self._call.n_workers:
            return None
        for item, file in free:
            lease = self._leases.claim(file, latest.get(file, 0))
            if lease is None:
                continue
            if self._state.is_settled(item.key):  # done since the list was read
                lease.remove()
                continue
            if lease.deaths >= self._call.most_deaths:
                self._give_up(item, lease)
                continue
            self._held[file] = lease
            return lease, item
        return None

    def settle(self, item: Item, lease: Lease, outcome: Outcome) -> None:
        """Write what became of an item, unless another worker has it by now."""
        if lease.renew():
            self._state.write(outcome)
            lease.remove()
        self._held.pop(lease.file, None)

    def _give_up(self, item: Item, lease: Lease) -> None:
        host = self._leases.last_host(lease.file, lease.attempt - 1)
        text = (
            f"{lease.deaths} workers died on it, the last on {host}; give the job more memory, or "
            f"{self._call.hint}"
        )
        outcome = Outcome(item.key, "failed", text, attempt=lease.attempt, call=self._call.name)
        self.settle(item, lease, replace(outcome, host=socket.gethostname()))

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew the claims in a thread; give those back that are not settled at the end."""
        thread = threading.Thread(target=self._renew, name="claims", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for lease in list(self._held.values()):
                if not lease.is_lost:
                    lease.release()

    def _renew(self) -> None:
        while not self._ended.wait(self._call.lease_s / 6):
            for lease in list(self._held.values()):
                lease.renew()

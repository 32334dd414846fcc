"""``run_cohort``: every item of a list done once, by the workers of an executor."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from virchow_st.cohort.job import Item, Job, Outcome
from virchow_st.cohort.lease import Leases
from virchow_st.cohort.state import CohortState
from virchow_st.cohort.worker import Call, work, work_or_refuse
from virchow_st.errors import VirchowSTError
from virchow_st.runtime.progress import SILENT, Progress

LEASE_S = 120.0
"""Seconds after which an item returns whose worker was lost with its machine."""
MOST_DEATHS = 5
"""Workers that one item may cost before it counts as failed: by its memory, for instance."""
_MOST_ERRORS, _MOST_LOST = 3, 20
_POLL_S, _LONGEST_PAUSE_S, _TABLE_EVERY_S, _TO_TIDY_S = 0.1, 30.0, 10.0, 60.0
_TO_GIVE_BACK_S = 5.0  # for a worker that has marked the last item and removes its claim
_HINT = "do it alone to see where"


class WorkerLostError(Exception):
    """A worker's process or machine is gone; its items go to others."""


class Pending(Protocol):
    """A worker that was started: what is used of a `concurrent.futures.Future`."""

    def done(self) -> bool:
        """Whether it has ended."""

    def exception(self) -> BaseException | None:
        """What it ended with, if not with a result."""

    def result(self) -> Any:
        """What it returned."""

    def cancel(self) -> Any:
        """Stop it, or keep it from starting."""


class Executor(Protocol):
    """Starts workers: what is used of a `concurrent.futures.Executor`."""

    def submit(self, function: Any, /, *arguments: Any) -> Pending:
        """Call a function in a worker."""


def run_cohort(
    items: Sequence[Item],
    job: Job,
    executor: Executor | None,
    folder: Path,
    *,
    n_workers: int = 1,
    progress: Progress = SILENT,
    name: str = "",
    is_first: bool = True,
    hint: str = _HINT,
    lease_s: float = LEASE_S,
    most_deaths: int = MOST_DEATHS,
) -> list[Outcome]:
    """Do every item of a list once, and return what became of each.

    Items that an earlier call finished stay as they are; those that failed are tried again. Several
    calls on one list share the items, from wherever they see the same folder. An item that fails
    is reported, and the others go on; an item whose worker dies goes to another worker.

    Args:
        items: what is to be done; keys are unique.
        job: what is done for each; it is pickled for the workers.
        executor: anything with the ``submit`` of `concurrent.futures`; None for this process.
        folder: of the state, on a disk that all workers share, or a URL in object storage; made if
            it is not there.
        n_workers: how many workers to keep busy.
        progress: receives notes, warnings, and the number of items that are settled.
        name: of the call, where several processes make the same call together; unique if empty.
        is_first: False in all but one of such processes.
        hint: what a message about an error that nobody foresaw ends with.
        lease_s: seconds after which an item of a lost worker returns. A worker that is killed
            gives its items back at once on its own machine.
        most_deaths: workers that one item may cost before it counts as failed.

    Returns:
        The outcome of each item, in the list's order; ``cohort.jsonl`` holds the same.

    Raises:
        ConfigError: the folder cannot be written, or two items have one key.
        StorageError: its storage cannot be reached, or writes over claims.
        VirchowSTError: what all items need is not there, or workers cannot be started.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the workers have been stopped.
    """
    order = sorted(items, key=lambda item: -item.size) if n_workers > 1 else items
    call = Call(
        name or uuid.uuid4().hex, tuple(order), job, folder, n_workers, lease_s, most_deaths, hint
    )
    state = CohortState(folder, items, job.settings())
    seen = _Seen(state, call.name, progress, shows=executor is not None)
    if is_first:
        seen.tidy(job)
    try:
        if executor is None:
            _in_this_process(call, seen, progress)
        else:
            _by_workers(call, seen, executor, progress)
    finally:
        outcomes = seen.outcomes()
        if is_first:
            state.write_table(outcomes)
    return outcomes


class _Seen:
    """What has become of the items so far, read from the marks as they appear."""

    def __init__(self, state: CohortState, call: str, progress: Progress, shows: bool) -> None:
        self.state, self._call, self._progress, self._shows = state, call, progress, shows
        self._files = {state.file_of[item.key]: item.key for item in state.items}
        self._settled: dict[str, Outcome] = {}
        self._last_table = time.monotonic()

    def tidy(self, job: Job) -> None:
        """Take away marks that do not hold any longer, so that their items are done again.

        Claims of items that are settled go as well.
        """
        items = {item.key: item for item in self.state.items}

        def look_again(key: str) -> None:
            found = self.state.read(key)
            if found is not None and found.state == "failed" and found.call == self._call:
                return
            if found is None or found.state == "failed" or not job.is_there(items[key]):
                self.state.forget(key)

        marked = self.state.settled() & self._files.keys()
        self.state.each(look_again, [self._files[file] for file in sorted(marked)])
        Leases(self.state.claims, LEASE_S).remove_of(self.state.settled())

    def outcomes(self) -> list[Outcome]:
        """What became of every item, in the list's order."""
        keys = [item.key for item in self.state.items]
        left = [key for key in keys if self.state.file_of[key] not in self._settled]
        found = dict(zip(left, self.state.each(self.state.read, left), strict=True))
        return [
            self._settled.get(self.state.file_of[key])
            or found.get(key)
            or Outcome(key, "preempted", "not finished")
            for key in keys
        ]

    def look(self) -> bool:
        """Report what is new; whether every item is settled."""
        new = sorted((self.state.settled() & self._files.keys()) - self._settled.keys())
        marks = self.state.each(self.state.read, [self._files[file] for file in new])
        for file, found in zip(new, marks, strict=True):
            if found is not None:
                self._settled[file] = found
                self._report(found)
        if new and self._shows:
            self._progress.step(len(self._settled), len(self._files), "items of the list")
        if new and time.monotonic() - self._last_table > _TABLE_EVERY_S:
            self.state.write_table(self.outcomes())
            self._last_table = time.monotonic()
        return len(self._settled) == len(self._files)

    @property
    def n_settled(self) -> int:
        """Number of items that are done or failed."""
        return len(self._settled)

    def _report(self, found: Outcome) -> None:
        if not self._shows or found.call != self._call:
            return
        for warning in found.warnings:
            self._progress.warn(f"{found.item}: {warning}")
        report = self._progress.warn if found.state == "failed" else self._progress.note
        report(f"{found.item}: {found.text}")

    def n_free(self, leases: Leases) -> int:
        """Number of items that a worker could take now."""
        settled, latest = self.state.settled(), leases.latest()
        return sum(
            file not in settled and leases.is_free(file, latest.get(file, 0))
            for file in self._files
        )


def _in_this_process(call: Call, seen: _Seen, progress: Progress) -> None:
    leases = Leases(seen.state.claims, call.lease_s)
    n_waiting = -1
    while True:
        if seen.n_free(leases):
            work(call, progress)
        began = time.monotonic()
        if seen.look():
            return
        left = len(call.items) - seen.n_settled
        if left != n_waiting:
            n_waiting = left
            progress.note(f"waiting for {left} of {len(call.items)} that other workers have")
        _pause(began, 2 * _POLL_S)


def _by_workers(call: Call, seen: _Seen, executor: Executor, progress: Progress) -> None:
    leases = Leases(seen.state.claims, call.lease_s)
    running: list[Pending] = []
    said: set[str] = set()
    n_errors = n_lost = n_before = 0
    try:
        while not seen.look():
            began = time.monotonic()
            if seen.n_settled > n_before:
                n_errors, n_lost, n_before = 0, 0, seen.n_settled
            for worker in [worker for worker in running if worker.done()]:
                running.remove(worker)
                error = worker.exception()
                if error is None:
                    worked = worker.result()
                    if isinstance(worked, VirchowSTError):
                        raise worked
                    for text in worked.warnings:
                        if text not in said:
                            said.add(text)
                            progress.warn(text)
                    continue
                if isinstance(error, WorkerLostError):
                    n_lost += 1
                    _note_lost(error, progress)
                else:
                    n_errors += 1
                    progress.warn(f"a worker ended with {type(error).__name__}: {error}")
                if n_errors > _MOST_ERRORS or n_lost > _MOST_LOST:
                    raise VirchowSTError(
                        f"{call.folder}: {n_errors + n_lost} workers ended and none finished an "
                        f"item; the last: {error}; see that a worker can import virchow_st and "
                        "has enough memory"
                    ) from error
            n_left = len(call.items) - seen.n_settled
            if len(running) < min(call.n_workers, n_left) and seen.n_free(leases):
                running.append(executor.submit(work_or_refuse, call))
            _pause(began, _POLL_S)
        _wait_for(running, _TO_GIVE_BACK_S)
        for worker in running:  # those that died on the last item
            if worker.done() and isinstance(error := worker.exception(), WorkerLostError):
                _note_lost(error, progress)
    except BaseException:
        _stop(running)
        raise


def _note_lost(error: WorkerLostError, progress: Progress) -> None:
    progress.note(f"{error}; its items go to another worker")


def _pause(began: float, at_least_s: float) -> None:
    """Wait after a look at the list: where it took long, as in object storage, the longer."""
    time.sleep(min(max(at_least_s, 10 * (time.monotonic() - began)), _LONGEST_PAUSE_S))


def _stop(running: Sequence[Pending]) -> None:
    """Stop workers, and wait until they have given their items back."""
    for worker in running:
        with contextlib.suppress(Exception):
            worker.cancel()
    _wait_for(running, _TO_TIDY_S)


def _wait_for(running: Sequence[Pending], at_most_s: float) -> None:
    deadline = time.monotonic() + at_most_s
    while time.monotonic() < deadline and not all(worker.done() for worker in running):
        time.sleep(_POLL_S)

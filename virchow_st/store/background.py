"""A thread that packs and commits, so that the encoder never waits for the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from types import TracebackType

from virchow_st.store.writer import PatchRecord, StoreWriter

# Batches that may wait. It bounds the memory where the disk is slower than the encoder, and it
# lets a disk that is only slow now and then catch up.
_WAITING = 2


class BackgroundWriter:
    """Appends batches to a `StoreWriter` from one thread, in the order they come.

    A context manager, to be used inside the writer's own; the writer is not touched from anywhere
    else in between. Leaving it waits until everything is committed. Leaving it by an error or by
    Ctrl-C finishes the batch that is being committed and drops those that wait: the store then
    ends between two batches, where it can be resumed.

    Args:
        writer: the open writer.

    Raises:
        StoreError: what went wrong in the thread, at the next `append` or on leaving. Nothing that
            comes after it is written: the store has no gaps. An error of the block goes first.
    """

    def __init__(self, writer: StoreWriter) -> None:
        self._writer = writer
        self._thread = ThreadPoolExecutor(1, "store-writer")
        self._pending: deque[Future[None]] = deque()  # the batch at work, then those that wait
        self._committing = Lock()
        self._has_ended = False

    def append(self, records: Sequence[PatchRecord]) -> None:
        """Hand over a batch; waits only while as many as may wait already do."""
        while self._pending and (self._pending[0].done() or len(self._pending) > _WAITING):
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(self._commit, records))

    def _commit(self, records: Sequence[PatchRecord]) -> None:
        with self._committing:
            if self._has_ended:
                return
            try:
                self._writer.append(records)
            except BaseException:
                self._has_ended = True  # what follows would be written in this batch's place
                raise

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            while self._pending and error is None:
                self._pending.popleft().result()
        finally:
            self._end()

    def _end(self) -> None:
        """See that no commit is at work and none will begin: LMDB must not be closed under one.

        Joining the thread would not do: before Python 3.13, a join that Ctrl-C interrupts takes
        the thread for dead.
        """
        self._has_ended = True
        interrupted = None
        while True:
            try:
                with self._committing:
                    break
            except KeyboardInterrupt as e:
                interrupted = e
        self._thread.shutdown(wait=False, cancel_futures=True)
        if interrupted is not None:
            raise interrupted

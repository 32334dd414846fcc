"""Writes batches from a thread, so that the encoder does not wait for the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from types import TracebackType

from virchow_st.store.writer import PatchRecord, StoreWriter

# Number of batches in the queue. It limits memory where the disk is slower than the encoder, and
# lets a disk that is slow only at times catch up.
_WAITING = 2


class BackgroundWriter:
    """Appends batches to a `StoreWriter` from one thread, in the order in which they are given.

    A context manager, to be used inside that of the writer, which nothing else may use meanwhile.
    Leaving it waits until all batches are committed. Leaving it by an error or by Ctrl-C finishes
    the batch that is being committed and drops those in the queue, so that the store ends between
    two batches and can be resumed.

    Args:
        writer: the open writer.

    Raises:
        StoreError: an error of the thread, at the next `append` or on leaving. No later batch is
            written, so that the store has no gaps. An error raised inside the block has priority.
    """

    def __init__(self, writer: StoreWriter) -> None:
        self._writer = writer
        self._thread = ThreadPoolExecutor(1, "store-writer")
        self._pending: deque[Future[None]] = deque()  # the batch being committed, then the queue
        self._committing = Lock()
        self._has_ended = False

    def append(self, records: Sequence[PatchRecord]) -> None:
        """Queue a batch; blocks only while the queue is full."""
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
        """Wait for the commit under way and prevent further ones, before LMDB is closed.

        Joining the thread is not enough: before Python 3.13, a join that Ctrl-C interrupts marks
        the thread as finished although it runs.
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

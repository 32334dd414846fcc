"""An object whose bytes are fetched when they are read, and kept on the machine's disk."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition

from virchow_st.cloud.place import Url
from virchow_st.cloud.storage import Entry, entry, missing, read
from virchow_st.errors import StorageError, to_write_or

BLOCK_BYTES = 64 << 10
"""What is fetched at least; blocks that follow each other are fetched by one request."""
_MOST_BLOCKS = 256  # of one request


class RangedFile:
    """An object that is read by byte ranges; several threads may read at once.

    Blocks that were fetched are kept in a sparse file, so that no byte is transferred twice.

    Args:
        url: the object.
        kept: the sparse file, which must not be there yet.
        found: the object, as `virchow_st.cloud.storage.entry` gives it; looked up if None.

    Attributes:
        size: of the object, bytes.
        n_fetched: bytes that were fetched so far.

    Raises:
        StorageError: the object is not there, or its storage cannot be reached.
    """

    def __init__(self, url: Url, kept: Path, found: Entry | None = None) -> None:
        if found is None and (found := entry(url)) is None:
            raise missing(url)
        self.url, self.size, self.kept = url, found.size, kept
        self.n_fetched = 0
        self._found = found
        self._failed: StorageError | None = None
        self._file = os.open(kept, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, self.size)
        self._has = bytearray(-(-self.size // BLOCK_BYTES))
        self._being_fetched: set[int] = set()
        self._changed = Condition()

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Bytes from an offset; fewer at the end of the object.

        Raises:
            StorageError: they cannot be fetched, or not be kept.
        """
        end = min(offset + n_bytes, self.size)
        if end <= offset:
            return b""
        self._want(range(offset // BLOCK_BYTES, -(-end // BLOCK_BYTES)))
        with self._keeping():
            return os.pread(self._file, end - offset, offset)

    def stream(self) -> io.BufferedReader:
        """The object as a binary file, for libraries that read one."""
        return io.BufferedReader(_Stream(self), BLOCK_BYTES)

    def fetch_all(self) -> None:
        """Fetch what is not there yet, so that `kept` is the whole file."""
        step = _MOST_BLOCKS * BLOCK_BYTES
        for start in range(0, self.size, step):
            self._want(range(start // BLOCK_BYTES, -(-min(start + step, self.size) // BLOCK_BYTES)))

    def check_complete(self) -> None:
        """Raise the error of a read that failed, which the caller of a library may not have seen.

        Raises:
            StorageError: some bytes could not be fetched.
        """
        if self._failed is not None:
            raise self._failed

    def check_unchanged(self) -> None:
        """Refuse an object that was replaced since it was opened: its bytes belong together.

        Raises:
            StorageError: it was replaced or deleted, or some bytes could not be fetched.
        """
        self.check_complete()
        if entry(self.url) != self._found:
            raise StorageError(
                f"{self.url}: was replaced while it was read; run the same command again, when "
                "nobody writes it"
            )

    def close(self) -> None:
        """Close and remove the sparse file."""
        os.close(self._file)
        self.kept.unlink(missing_ok=True)

    def _fetch(self, start: int, end: int) -> bytes:
        try:
            return read(self.url, start, end)
        except StorageError as e:
            self._failed = e
            raise

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """An error of the disk is not the image's: it must not be taken for a damaged level."""
        try:
            yield
        except OSError as e:
            self._failed = StorageError(
                f"{self.kept}: cannot be kept on the machine's disk ({e.strerror}); "
                f"{to_write_or(e, 'set TMPDIR to another folder')}"
            )
            raise self._failed from None

    def _want(self, blocks: range) -> None:
        """Fetch the blocks that are not there, and wait for those that another thread fetches."""
        with self._changed:
            mine = [b for b in blocks if not self._has[b] and b not in self._being_fetched]
            self._being_fetched.update(mine)
        try:
            for first, stop in _runs(mine):
                start, end = first * BLOCK_BYTES, min(stop * BLOCK_BYTES, self.size)
                content = self._fetch(start, end)
                with self._keeping():
                    _write(self._file, content, start)
                with self._changed:
                    self.n_fetched += len(content)
                    self._has[first:stop] = b"\1" * (stop - first)
        finally:
            with self._changed:
                self._being_fetched.difference_update(mine)
                self._changed.notify_all()
        with self._changed:
            self._changed.wait_for(lambda: not self._being_fetched.intersection(blocks))
            left = not all(self._has[b] for b in blocks)
        if left:  # another thread failed
            self._want(blocks)


def _write(file: int, content: bytes, at: int) -> None:
    left = memoryview(content)
    while left:
        n_written = os.pwrite(file, left, at)
        left, at = left[n_written:], at + n_written


def _runs(blocks: list[int]) -> list[tuple[int, int]]:
    """Runs of whole numbers that follow each other, (first, stop), in pieces of bounded length.

    >>> _runs([1, 2, 3, 7])
    [(1, 4), (7, 8)]
    """
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and runs[-1][1] == block and block - runs[-1][0] < _MOST_BLOCKS:
            runs[-1] = runs[-1][0], block + 1
        else:
            runs.append((block, block + 1))
    return runs


class _Stream(io.RawIOBase):
    def __init__(self, source: RangedFile) -> None:
        super().__init__()
        self._source, self._at = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._source.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        found = self._source.read(self._at, len(view))
        view[: len(found)] = found
        self._at += len(found)
        return len(found)

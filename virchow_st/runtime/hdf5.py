"""Writes HDF5 files safely where a disk may run full, and detects files that are being written.

HDF5 itself does not survive a write that fails: closing the file fails too, and the library later
ends the process with a segmentation fault. Here, HDF5 therefore writes through a Python file
object, which keeps in memory what the disk refuses and reports the error when HDF5 has closed the
file.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py


class _Sink(io.RawIOBase):
    """A file for HDF5 in which no write fails; the first error is kept."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.error: OSError | None = None
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._at = 0
        self._kept: dict[int, bytes] = {}  # offset → what the disk did not take

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence)
        self._at = offset + (self._size() if start is None else start)
        return self._at

    def _size(self) -> int:
        ends = (offset + len(kept) for offset, kept in self._kept.items())
        return max(os.fstat(self._descriptor).st_size, max(ends, default=0))

    def readinto(self, buffer: Any) -> int:
        into = memoryview(buffer).cast("B")
        done = 0
        while done < len(into):
            found = os.pread(self._descriptor, len(into) - done, self._at + done)
            if not found:
                break
            into[done : done + len(found)] = found
            done += len(found)
        into[done:] = bytes(len(into) - done)
        for offset, kept in self._kept.items():
            first, last = max(offset, self._at), min(offset + len(kept), self._at + len(into))
            if first < last:
                into[first - self._at : last - self._at] = kept[first - offset : last - offset]
        self._at += len(into)
        return len(into)

    def write(self, data: Any) -> int:
        content = memoryview(data).cast("B")
        try:
            done = len(content) if self.error else 0
            while done < len(content):
                done += os.pwrite(self._descriptor, content[done:], self._at + done)
        except OSError as e:
            self.error = e
        if self.error is not None:
            self._kept[self._at] = bytes(content)
        self._at += len(content)
        return len(content)

    def truncate(self, size: int | None = None) -> int:
        size = self._at if size is None else size
        try:
            if self.error is None:
                os.ftruncate(self._descriptor, size)
        except OSError as e:
            self.error = e
        return size

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class Hdf5Output:
    """An HDF5 file that is being written.

    Attributes:
        file: to write to.
    """

    def __init__(self, file: h5py.File, sink: _Sink, path: Path) -> None:
        self.file, self._sink, self._path = file, sink, path

    def check(self) -> None:
        """Raise the error of the first failed write; long jobs call it now and then."""
        if (e := self._sink.error) is not None:
            raise OSError(e.errno, e.strerror, str(self._path))


@contextmanager
def written_hdf5(path: Path) -> Iterator[Hdf5Output]:
    """Write an HDF5 file; on leaving, it is complete or the error of a failed write is raised.

    Args:
        path: of the file, best one aside; what was there is overwritten.

    Raises:
        OSError: of the first write that failed, when it is left or by `Hdf5Output.check`.
    """
    sink = _Sink(path)
    try:
        with h5py.File(sink, "w") as file:
            output = Hdf5Output(file, sink, path)
            yield output
        output.check()
    finally:
        sink.close()


def is_held_by_another(error: BaseException) -> bool:
    """Whether HDF5 could not open a file because another program has it open for writing."""
    return isinstance(error, OSError) and (
        error.errno in (errno.EAGAIN, errno.EACCES) and "lock file" in str(error)
    )


HELD = "another program has it open for writing; close it there, or wait until it has ended"
"""What to say of such a file: it is not damaged."""

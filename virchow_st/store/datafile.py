"""An open ``data.mdb`` for readers, without locks and without the LMDB library.

LMDB's own reader trusts every page of the file it maps, must be opened only once per process and
must not be used after a fork. Here the pages are checked first (`virchow_st.store.pages`); what is
needed after that is a memory map and a list of offsets, which threads and forked processes may
share.
"""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path

import numpy as np

from virchow_st.errors import StoreError
from virchow_st.store.pages import Place, find_records


class DataFile:
    """The records of a finished store by key, for any number of threads and after a fork.

    The file may be moved or deleted while it is open.

    Args:
        path: the file.

    Raises:
        StoreError: it cannot be opened, is cut short, or its pages are damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._fd)
            self.places: dict[bytes, Place] = find_records(self._fd, path)
            self._map = memoryview(mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ))
        except OSError as e:
            raise StoreError(
                f"{path}: cannot be opened ({e.strerror}); copy or extract the store again"
            ) from None

    def view(self, place: Place) -> memoryview:
        """Read-only view of a value in the map, the fastest way to read.

        A file that has been truncated since it was opened is noticed. A disk that fails to deliver
        a mapped page ends the process (SIGBUS); `read` raises an error instead.
        """
        self._require(place, os.fstat(self._fd).st_size - place.offset)
        return self._map[place.offset : place.offset + place.size]

    def read(self, place: Place) -> memoryview:
        """Copy of a value by a plain read, in writable memory.

        Half as fast as `view`, but a failing disk raises an error.
        """
        value = np.empty(place.size, np.uint8).data
        try:
            self._require(place, os.preadv(self._fd, [value], place.offset))
        except OSError as e:
            raise StoreError(f"{self.path}: cannot be read ({e.strerror})") from None
        return value

    def _require(self, place: Place, n_there: int) -> None:
        if n_there < place.size:
            raise StoreError(
                f"{self.path}: expected {place.size} bytes at {place.offset}, got "
                f"{max(0, n_there)}; the file was cut short, copy or extract the store again"
            )

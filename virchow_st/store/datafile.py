"""Reads an open ``data.mdb`` without locks and without the LMDB library.

LMDB's own reader trusts every page of the file that it maps, must be opened only once per process
and must not be used after a fork. Here, the pages are checked first (`virchow_st.store.pages`);
after that, a memory map and a list of offsets suffice, which threads and forked processes may
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

    Attributes:
        places: key → offset and size of every record, in key order.

    Raises:
        StoreError: the file cannot be opened, is truncated, or its pages are damaged.
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
        """Read-only view of a value in the memory map, which is the fastest way to read.

        If a disk fails to deliver a mapped page, the process ends with SIGBUS; `read` raises an
        error instead.

        Raises:
            StoreError: the file has been truncated since it was opened.
        """
        self._require(place, os.fstat(self._fd).st_size - place.offset)
        return self._map[place.offset : place.offset + place.size]

    def read(self, place: Place) -> memoryview:
        """Copy of a value in writable memory; half as fast as `view`.

        Raises:
            StoreError: the disk fails, or the file has been truncated since it was opened.
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
                f"{max(0, n_there)}; the file is truncated, copy or extract the store again"
            )

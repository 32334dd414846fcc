"""Reads slices of one-dimensional HDF5 datasets after checking that no chunk is missing.

HDF5 silently returns zeros for chunks that a damaged file no longer lists, and it decompresses on
one thread under a lock. Therefore the list of chunks is checked first, and chunks compressed as by
Space Ranger (deflate, with or without shuffle) are decompressed here; HDF5 reads all others.
"""

from __future__ import annotations

from typing import Any

import h5py
import imagecodecs
import numpy as np

from virchow_st.types import Array

_DEFLATE, _SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE
_LARGEST_RATIO = 1032  # deflate's largest expansion: 258 bytes from two bits


class Hdf5Column:
    """A dataset of N numbers or strings, read as ``column[start:stop]``.

    The last chunk is kept, so that consecutive slices decompress a shared chunk only once. Only
    one thread may read at a time.

    Attributes:
        dtype: of the returned arrays.
    """

    def __init__(self, dataset: Any) -> None:
        """Check the dataset's list of chunks.

        Args:
            dataset: an open `h5py.Dataset`, (N,).

        Raises:
            ValueError: the dataset is not one-dimensional, has an unusual type, or lacks chunks.
        """
        if not isinstance(dataset, h5py.Dataset) or len(dataset.shape) != 1:
            raise ValueError("expected a list of values")
        self.dtype: np.dtype[Any] = dataset.dtype
        self._dataset = dataset
        self._itemsize = dataset.id.get_type().get_size()
        plain = h5py.h5t.py_create(dataset.dtype, logical=True)
        if dataset.dtype.kind in "iuf" and plain != dataset.id.get_type():
            raise ValueError(f"{dataset.name}: its type is no plain {dataset.dtype}")
        plist = dataset.id.get_create_plist()
        filters = [self._filter(plist, i) for i in range(plist.get_nfilters())]
        self._deflated = filters in ([_DEFLATE], [_SHUFFLE, _DEFLATE]) and (
            dataset.dtype.kind in "iufS"
        )
        self._shuffled = _SHUFFLE in filters
        self._chunk = dataset.chunks[0] if dataset.chunks else 0
        self._last: tuple[int, Array] | None = None
        self._check_chunks(plist)

    def __len__(self) -> int:
        return int(self._dataset.shape[0])

    def __getitem__(self, stretch: slice) -> Array:
        """The values of a slice, (n,); its end may lie beyond the last value.

        Raises:
            OSError, RuntimeError, ValueError: the file is damaged.
        """
        if not self._deflated:
            return self._dataset[stretch]
        start, stop, _ = stretch.indices(len(self))
        values = np.empty(stop - start, self.dtype)
        for first in range(start // self._chunk * self._chunk, stop, self._chunk):
            chunk = self._read_chunk(first)
            low, high = max(start, first), min(stop, first + self._chunk)
            values[low - start : high - start] = chunk[low - first : high - first]
        return values

    def _read_chunk(self, first: int) -> Array:
        if self._last and self._last[0] == first:
            return self._last[1]
        skipped, packed = self._dataset.id.read_direct_chunk((first,))
        n_bytes = self._chunk * self._itemsize
        if skipped:
            raise ValueError(f"{self._dataset.name}: a chunk not packed like the others")
        if n_bytes > _LARGEST_RATIO * len(packed):  # checked before the memory is allocated
            raise ValueError(f"{self._dataset.name}: a chunk of {n_bytes} bytes, which is too many")
        packed = imagecodecs.deflate_decode(packed, out=n_bytes)  # compares the checksum
        if len(packed) != n_bytes:
            raise ValueError(f"{self._dataset.name}: a chunk of {len(packed)} bytes, not {n_bytes}")
        raw = np.frombuffer(packed, np.uint8)
        if self._shuffled:
            raw = _unshuffle(raw.reshape(self._itemsize, self._chunk))
        values = raw.reshape(-1).view(self.dtype)
        self._last = first, values
        return values

    def _filter(self, plist: Any, index: int) -> int:
        """Code of a filter; refuses a shuffle of the wrong element size, on which HDF5 crashes.

        Strings of variable length may declare a shuffle filter without a size, which does nothing.
        """
        code, _, values, _ = plist.get_filter(index)
        expected = [(self._itemsize,), ()] if self.dtype.kind == "O" else [(self._itemsize,)]
        if code == _SHUFFLE and tuple(values) not in expected:
            raise ValueError(f"{self._dataset.name}: shuffled by {values}, not {self._itemsize}")
        return int(code)

    def _check_chunks(self, plist: Any) -> None:
        """Refuse a dataset with missing parts, which HDF5 would silently read as fill values."""
        n = len(self)
        if self._chunk:
            infos: list[Any] = []
            self._dataset.id.chunk_iter(infos.append)
            expected = range(0, n, self._chunk)
            found = sorted(info.chunk_offset[0] for info in infos)
            if len(found) != len(expected) or found != list(expected):
                raise ValueError(f"{self._dataset.name}: chunks are missing or out of place")
            end = self._dataset.file.id.get_filesize()
            if any(info.byte_offset + info.size > end for info in infos):
                raise ValueError(f"{self._dataset.name}: chunks reach beyond the end of the file")
            plain = self._chunk * self._itemsize  # bytes; HDF5 reads past a shorter one
            if plist.get_nfilters() == 0 and any(info.size != plain for info in infos):
                raise ValueError(f"{self._dataset.name}: chunks of other than {plain} bytes")
        elif n and not self._has_place(plist):
            raise ValueError(f"{self._dataset.name}: its values are missing")

    def _has_place(self, plist: Any) -> bool:
        contiguous = plist.get_layout() == h5py.h5d.CONTIGUOUS
        return not contiguous or self._dataset.id.get_offset() is not None


def _unshuffle(planes: Array) -> Array:
    """(n, itemsize) uint8 from byte planes (itemsize, n), of which most are zero and skipped."""
    values = np.zeros(planes.shape[::-1], np.uint8)
    for byte, plane in enumerate(planes):
        if plane.any():
            values[:, byte] = plane
    return values

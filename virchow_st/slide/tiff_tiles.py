"""Decodes tiles and strips of a TIFF on demand, for several threads, with a bounded cache."""

from __future__ import annotations

import os
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from virchow_st.cloud.ranged import RangedFile
from virchow_st.types import Array

# Bounds of the cache, in decoded bytes. Strips are as wide as the image, so that all patches of a
# row need the same ones, some 250 MiB for a slide 20 mm wide. Neighbouring patches share only the
# tiles at their common border.
_KEPT_STRIPS_BYTES = 512 << 20
_KEPT_TILES_BYTES = 128 << 20
_JPEG = (6, 7, 34892, 33007)  # compressions whose segments may need the file's common tables


class TiffTiles:
    """The pixels of a TIFF page, sliced like an array (height, width, samples).

    Several threads may slice at once. Each decodes the tiles or strips it needs and waits for those
    that another thread is decoding; the most recently used ones are cached. If some tiles have no
    bytes in the file, slices have one more sample, a mask: the type's largest value where there are
    pixels, 0 elsewhere.

    Args:
        path: the file.
        page: the tifffile page; its file may be closed afterwards.
        sample: the sample to read from a page that stores samples in separate planes; None if they
            are interleaved.
        ranged: reads the bytes of a file in object storage; it is not closed here.

    Attributes:
        shape: (height, width, samples), not counting the mask.
        has_holes: whether some tiles have no bytes, so that slices have the mask.
    """

    def __init__(
        self, path: Path, page: Any, sample: int | None = None, ranged: RangedFile | None = None
    ) -> None:
        key = page.keyframe
        n_samples = 1 if sample is not None else key.samplesperpixel
        self.shape: tuple[int, int, int] = (key.imagelength, key.imagewidth, n_samples)
        self.dtype: np.dtype[Any] = key.dtype.newbyteorder("=")
        self.is_strips: bool = not key.is_tiled
        self._size = segment_size(key)
        self._across = -(-self.shape[1] // self._size[1])
        n_segments = self._across * -(-self.shape[0] // self._size[0])
        self._first = (sample or 0) * n_segments
        of_sample = slice(self._first, self._first + n_segments)
        self._offsets = page.dataoffsets[of_sample]
        self._bytes = page.databytecounts[of_sample]
        if min(len(self._offsets), len(self._bytes)) < n_segments:
            raise ValueError(f"it lists {len(self._offsets)} of {n_segments} tiles or strips")
        self.has_holes: bool = 0 in self._bytes
        self._samples = n_samples + self.has_holes
        self._decoder = key.decode
        self._arguments: dict[str, Any] = {}
        if key.compression in _JPEG:
            self._arguments = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader}
        self._file = None if ranged else os.open(path, os.O_RDONLY)
        self._ranged = ranged
        self._lock = Lock()
        self._kept: OrderedDict[int, Future[Array]] = OrderedDict()
        self._kept_bytes = 0

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)

    def __getitem__(self, place: tuple[slice, slice]) -> Array:
        rows, cols = place
        height, width = self._size
        shape = (rows.stop - rows.start, cols.stop - cols.start, self._samples)
        out = np.empty(shape, self.dtype)
        for row in range(rows.start // height, -(-rows.stop // height)):
            for col in range(cols.start // width, -(-cols.stop // width)):
                segment = self._segment(row * self._across + col)
                top, left = row * height, col * width
                y0, y1 = max(rows.start, top), min(rows.stop, top + height)
                x0, x1 = max(cols.start, left), min(cols.stop, left + width)
                out[y0 - rows.start : y1 - rows.start, x0 - cols.start : x1 - cols.start] = segment[
                    y0 - top : y1 - top, x0 - left : x1 - left
                ]
        return out

    def _segment(self, index: int) -> Array:
        with self._lock:
            if (being_made := self._kept.get(index)) is not None:
                self._kept.move_to_end(index)
            else:
                mine = self._kept[index] = Future()
        if being_made is not None:
            return being_made.result()
        try:
            pixels = self._decode(index)
        except BaseException as e:
            with self._lock:
                del self._kept[index]
            mine.set_exception(e)
            raise
        mine.set_result(pixels)
        with self._lock:
            self._kept_bytes += pixels.nbytes
            self._forget()
        return pixels

    def _forget(self) -> None:
        """Drop the least recently used tiles until the rest is within bounds."""
        bound = _KEPT_STRIPS_BYTES if self.is_strips else _KEPT_TILES_BYTES
        while self._kept_bytes > bound:
            index = next((i for i, made in self._kept.items() if made.done()), None)
            if index is None:
                return
            self._kept_bytes -= self._kept.pop(index).result().nbytes

    def _decode(self, index: int) -> Array:
        """Decode a tile or strip, (rows, columns, samples); it may be smaller at the edge."""
        n_bytes = self._bytes[index]
        encoded = self._read(self._offsets[index], n_bytes) if n_bytes else None
        pixels, _, shape = self._decoder(encoded, self._first + index, **self._arguments)
        if pixels is None:
            return np.zeros((*shape[1:3], self._samples), self.dtype)
        pixels = pixels.reshape(shape)[0].astype(self.dtype, copy=False)
        if pixels.shape[2] < self._samples:
            there = np.full((*pixels.shape[:2], 1), np.iinfo(self.dtype).max, self.dtype)
            pixels = np.concatenate([pixels, there], axis=2)
        return pixels

    def _read(self, offset: int, n_bytes: int) -> bytes:
        if self._ranged is not None:
            return self._ranged.read(offset, n_bytes)
        assert self._file is not None
        return os.pread(self._file, n_bytes, offset)


def segment_size(key: Any) -> tuple[int, int]:
    """Rows and columns of a tile or strip of a tifffile page."""
    if key.is_tiled:
        return key.tilelength, key.tilewidth
    return min(key.rowsperstrip, key.imagelength), key.imagewidth

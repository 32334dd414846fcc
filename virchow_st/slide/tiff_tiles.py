"""Tiles and strips of a TIFF, decoded where they are needed and kept for a while; for threads."""

from __future__ import annotations

import os
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from virchow_st.types import Array

# Decoded. Strips as wide as the image are needed again by every patch beside: a row of patches
# takes some 250 MiB of a slide 20 mm wide. Of tiles only those at a patch's border are.
_KEPT_STRIPS_BYTES = 512 << 20
_KEPT_TILES_BYTES = 128 << 20
_JPEG = (6, 7, 34892, 33007)  # compressions whose segments may need the file's common tables


class TiffTiles:
    """The pixels of a TIFF level, sliced like an array (height, width, samples).

    Several threads may slice at once: each decodes its own tiles or strips, and one that another
    is decoding already is waited for. Those decoded last are kept, within bounds. Where some have
    no bytes in the file, a fourth sample says where there are pixels.

    Args:
        path: the file.
        level: of tifffile, samples together; its file may be closed afterwards.
    """

    def __init__(self, path: Path, level: Any) -> None:
        page, place = level.keyframe, level.pages[0]
        self.shape: tuple[int, int, int] = page.shape
        self.is_strips: bool = not page.is_tiled
        self._size: tuple[int, int] = page.chunks[:2]  # rows and columns of a segment
        self._across = -(-self.shape[1] // self._size[1])
        self._offsets, self._bytes = place.dataoffsets, place.databytecounts
        self._samples = 4 if 0 in self._bytes else self.shape[2]
        self._decoder = page.decode
        self._arguments: dict[str, Any] = {}
        if page.compression in _JPEG:
            self._arguments = {"jpegtables": place.jpegtables, "jpegheader": page.jpegheader}
        self._file = os.open(path, os.O_RDONLY)
        self._lock = Lock()
        self._kept: OrderedDict[int, Future[Array]] = OrderedDict()
        self._kept_bytes = 0

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __getitem__(self, place: tuple[slice, slice]) -> Array:
        rows, cols = place
        height, width = self._size
        out = np.empty((rows.stop - rows.start, cols.stop - cols.start, self._samples), np.uint8)
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
        """Drop what was used longest ago until the rest is within bounds."""
        bound = _KEPT_STRIPS_BYTES if self.is_strips else _KEPT_TILES_BYTES
        while self._kept_bytes > bound:
            index = next((i for i, made in self._kept.items() if made.done()), None)
            if index is None:
                return
            self._kept_bytes -= self._kept.pop(index).result().nbytes

    def _decode(self, index: int) -> Array:
        """(rows, columns, samples) uint8 of a segment; at the image's edge it may be smaller."""
        n_bytes = self._bytes[index]
        encoded = os.pread(self._file, n_bytes, self._offsets[index]) if n_bytes else None
        pixels, _, shape = self._decoder(encoded, index, **self._arguments)
        if pixels is None:
            return np.zeros((*shape[1:3], self._samples), np.uint8)
        pixels = pixels.reshape(shape)[0]
        if pixels.shape[2] < self._samples:
            opaque = np.full((*pixels.shape[:2], 1), 255, np.uint8)
            pixels = np.concatenate([pixels, opaque], axis=2)
        return pixels

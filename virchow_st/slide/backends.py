"""Three sources of a slide image's pixels: OpenSlide, the levels of a TIFF, an array in memory.

Each source lists its pyramid levels and reads a rectangle of one level as RGB. `SlideImage` builds
on that; `virchow_st.slide.choose` decides which source reads a given file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import openslide

from virchow_st.slide.space_ranger import reading
from virchow_st.slide.tiff_tiles import TiffTiles
from virchow_st.types import Array, BoolArray, UInt8Array

_WHAT = "a slide image"


class Pixels(Protocol):
    """An image pyramid in RGB, finest level first; several threads may read from it at once."""

    name: str
    level_sizes: list[tuple[int, int]]  # (width, height)

    def read(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> tuple[UInt8Array, BoolArray | None]:
        """Read a rectangle that lies inside a level.

        Args:
            level: index into ``level_sizes``.
            x: left edge of the rectangle, in pixels of that level.
            y: its top edge, likewise.
            width: its size, in pixels of that level.
            height: likewise.

        Returns:
            (height, width, 3) uint8 RGB, with transparency blended onto white; and
            (height, width) bool, False where the file holds no pixels (None if it holds all).
        """
        ...

    def close(self) -> None:
        """Close the file."""
        ...


@dataclass(frozen=True)
class Samples:
    """Which samples of a pixel are its colours, and how they are converted to 8-bit RGB.

    Attributes:
        colours: indices of red, green and blue among the samples.
        alpha: index of the alpha (transparency) sample, or None.
        premultiplied: whether the colours are stored already multiplied by alpha.
        largest: the sample value of full brightness; 8-bit samples with 255 are left as they are.
    """

    colours: tuple[int, int, int] = (0, 1, 2)
    alpha: int | None = None
    premultiplied: bool = False
    largest: int = 255

    def to_rgb(self, samples: Array, there: Array | None) -> tuple[UInt8Array, BoolArray | None]:
        """Convert samples to RGB, with transparency blended onto white.

        Args:
            samples: (h, w, S) uint8 or uint16.
            there: (h, w), 0 where the file holds no pixels; None if it holds all.

        Returns:
            (h, w, 3) uint8 RGB; and (h, w) bool, False where pixels are missing or fully
            transparent (None if there are no such pixels).
        """
        rgb = self._to_8_bits(self._pick(samples))
        opaque = None if there is None else there > 0
        alpha = None if self.alpha is None else self._to_8_bits(samples[..., self.alpha])
        if alpha is not None and alpha.min() < 255:
            weight = alpha[..., None].astype(np.uint16)
            if self.premultiplied:
                rgb = np.minimum(rgb + (255 - weight), 255).astype(np.uint8)
            else:
                rgb = ((rgb * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)
            opaque = alpha > 0 if opaque is None else opaque & (alpha > 0)
        if opaque is not None and opaque.all():
            opaque = None
        if opaque is not None:
            rgb = np.where(opaque[..., None], rgb, np.uint8(255))
        return np.ascontiguousarray(rgb), opaque

    def _pick(self, samples: Array) -> Array:
        if self.colours != (0, 1, 2):
            return samples[..., list(self.colours)]
        if samples.shape[2] == 4 and samples.dtype == np.uint8:  # much faster than a slice
            return cv2.cvtColor(samples, cv2.COLOR_RGBA2RGB)
        return samples[..., :3]

    def _to_8_bits(self, values: Array) -> Array:
        if values.dtype == np.uint8 and self.largest == 255:
            return values
        scale = np.arange(np.iinfo(values.dtype).max + 1, dtype=np.uint32)
        scale = np.minimum((scale * 255 + self.largest // 2) // self.largest, 255)
        return scale.astype(np.uint8)[values]


_RGBA = Samples(alpha=3)


class OpenSlidePixels:
    """A slide that is read by OpenSlide.

    Args:
        path: the file.
        sizes: (width, height) of the levels to use besides the finest; None for all levels.

    Attributes:
        properties: OpenSlide's properties of the slide.
    """

    name = "openslide"

    def __init__(self, path: Path, sizes: Sequence[tuple[int, int]] | None = None) -> None:
        self._path = path
        with reading(path, _WHAT):
            try:
                self._slide = openslide.OpenSlide(str(path))
            except openslide.OpenSlideError as e:
                raise OSError(str(e)) from None
        self.properties = dict(self._slide.properties)
        every = list(self._slide.level_dimensions)
        self._levels = [n for n, size in enumerate(every) if n == 0 or not sizes or size in sizes]
        self.level_sizes = [every[n] for n in self._levels]

    def read(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> tuple[UInt8Array, BoolArray | None]:
        """As `Pixels.read`."""
        # OpenSlide takes the corner in level-0 px and divides it by the level's downsample.
        level = self._levels[level]
        downsample = self._slide.level_downsamples[level]
        corner = (round(x * downsample), round(y * downsample))
        with reading(self._path, _WHAT):
            try:
                rgba = np.asarray(self._slide.read_region(corner, level, (width, height)))
            except openslide.OpenSlideError as e:
                raise OSError(str(e)) from None
        return _RGBA.to_rgb(rgba, None)

    def close(self) -> None:
        """Close the file."""
        self._slide.close()


class TiffLevel:
    """One pyramid level of a TIFF, for one plane.

    Args:
        sources: one source of shape (height, width, S) with all samples, or one source per sample.
        samples: which of the samples are the colours.
    """

    def __init__(self, sources: list[TiffTiles | Plain], samples: Samples) -> None:
        self._sources, self.samples = sources, samples
        height, width = sources[0].shape[:2]
        self.size = (width, height)

    def raw(self, rows: slice, cols: slice) -> tuple[Array, Array | None]:
        """Read samples as stored.

        Returns:
            (h, w, S) samples; and (h, w), 0 where the file holds no pixels (None if it holds all).
        """
        parts, there = [], None
        for source in self._sources:
            part = source[rows, cols]
            if source.has_holes:
                part, there = part[..., :-1], part[..., -1]
            parts.append(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2), there

    def read(self, rows: slice, cols: slice) -> tuple[UInt8Array, BoolArray | None]:
        """Read RGB and the mask of existing pixels, as `Pixels.read` does."""
        return self.samples.to_rgb(*self.raw(rows, cols))

    def close(self) -> None:
        """Close the file."""
        for source in self._sources:
            source.close()


class TiffPixels:
    """The levels of a TIFF, decoded by this package or, if uncompressed, mapped from the file."""

    name = "tifffile"

    def __init__(self, path: Path, levels: list[TiffLevel]) -> None:
        self._path, self._levels = path, levels
        self.level_sizes = [level.size for level in levels]

    def read(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> tuple[UInt8Array, BoolArray | None]:
        """As `Pixels.read`."""
        with reading(self._path, _WHAT):
            return self._levels[level].read(slice(y, y + height), slice(x, x + width))

    def close(self) -> None:
        """Close the file."""
        for level in self._levels:
            level.close()
        self._levels = []


class ArrayPixels:
    """An image in memory, (H, W, S) uint8 or uint16, as a pyramid of one level."""

    def __init__(self, name: str, array: Array, samples: Samples) -> None:
        self.name, self._array, self._samples = name, array, samples
        self.level_sizes = [(array.shape[1], array.shape[0])]

    def read(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> tuple[UInt8Array, BoolArray | None]:
        """As `Pixels.read`."""
        return self._samples.to_rgb(self._array[y : y + height, x : x + width], None)

    def close(self) -> None:
        """Release the array."""
        self._array = self._array[:0]


class Plain:
    """Uncompressed pixels, contiguous in the file.

    The file is memory-mapped anew for every slice, so that no pages stay mapped between reads.

    Args:
        path: the file.
        offset: byte offset of the first pixel.
        shape: (height, width, samples) as stored.
        dtype: of the samples, with the file's byte order.
    """

    has_holes = False

    def __init__(
        self, path: Path, offset: int, shape: tuple[int, int, int], dtype: np.dtype[Any]
    ) -> None:
        self._path, self._offset, self._dtype = path, offset, dtype
        self.shape = shape

    def __getitem__(self, place: tuple[slice, slice]) -> Array:
        mapped = np.memmap(self._path, self._dtype, "r", self._offset, self.shape)
        return np.array(mapped[place], self._dtype.newbyteorder("="))

    def close(self) -> None:
        """Do nothing: the file is open only while a slice is read."""

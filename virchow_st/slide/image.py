"""A slide image, read region by region at about the requested resolution, never as a whole."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from virchow_st.cloud.place import Url, place
from virchow_st.errors import SlideError
from virchow_st.slide.backends import ArrayPixels, Pixels, Samples
from virchow_st.slide.choice import ImageChoice
from virchow_st.slide.choose import image_of_array, open_image, slide_file
from virchow_st.slide.orientation import OrientedPixels
from virchow_st.slide.remote import RemoteImage
from virchow_st.slide.space_ranger import fingerprint
from virchow_st.types import BoolArray, UInt8Array

_BAND_PX = 8 << 20  # pixels averaged at once; they take 14 bytes each, counting all copies


class SlideImage:
    """An RGB slide image in full-resolution px, corner-based: pixel ``i`` spans ``[i, i+1)``.

    Several threads of a process may read from one instance; every process has to open its own.

    Attributes:
        path: the file; a `virchow_st.cloud.place.Url` of one in object storage.
        width, height: of the finest level, px.
        choice: how the file is read: reader, series, plane, colour samples, bits.
        orientation: value of the Orientation tag that has been applied to the pixels; 1 means
            that they are as stored.
    """

    def __init__(
        self,
        path: Path,
        pixels: Pixels,
        choice: ImageChoice,
        orientation: int = 1,
        remote: RemoteImage | None = None,
    ) -> None:
        self.path = path
        self.choice = choice
        self.orientation = orientation
        self.width, self.height = pixels.level_sizes[0]
        self._pixels, self._remote = pixels, remote
        self._level_of_factor = _exact_levels(pixels.level_sizes)
        self._damaged: dict[int, str] = {}  # reduced level → what was wrong with it
        self._lock = Lock()

    @classmethod
    def open(cls, path: str | Path) -> SlideImage:
        """Open a TIFF (tiled or striped, pyramid or not), a vendor's format, a PNG or a JPEG.

        The pixels are returned as stored; `oriented` applies the file's Orientation tag.

        Args:
            path: the file, a folder with the ``.dcm`` files of one DICOM slide, or a URL in object
                storage, from which only the tiles are fetched that are read, where the file is a
                tiled TIFF or SVS.

        Raises:
            SlideError: the file is missing, damaged, of an unknown format, or not an RGB image.
            StorageError: the storage of a URL cannot be reached or refuses.

        Example:
            >>> with SlideImage.open("slide.svs") as image:  # doctest: +SKIP
            ...     rgb, on_image, scale = image.read_region(0, 0, 2048, 2048, downsample=4)
        """
        path = place(path)
        if isinstance(path, Url):
            remote = RemoteImage(path)
            try:
                return cls(path, *remote.open_pixels(), remote=remote)
            except BaseException:
                remote.close()
                raise
        path = slide_file(path)
        return cls(path, *open_image(path))

    @classmethod
    def of_array(cls, pixels: UInt8Array) -> SlideImage:
        """Wrap an image in memory, (H, W, 3) uint8 RGB, which has no file.

        Example:
            >>> image = SlideImage.of_array(np.full((100, 200, 3), 128, np.uint8))
            >>> rgb, on_image, scale = image.read_region(0, 0, 200, 100, downsample=4)
            >>> rgb.shape, scale
            ((25, 50, 3), 4.0)
        """
        return cls(Path("image"), ArrayPixels("array", pixels, Samples()), image_of_array(pixels))

    def oriented(self) -> SlideImage:
        """The same image, rotated or mirrored as the file's Orientation tag says.

        Both share the open file, which closing the original closes.
        """
        orientation = self.choice.orientation
        return SlideImage(
            self.path,
            OrientedPixels(self._pixels, orientation),
            self.choice,
            orientation,
            self._remote,
        )

    @property
    def backend(self) -> str:
        """``"openslide"``, ``"tifffile"`` or ``"opencv"``, or ``"array"`` for one in memory."""
        return self.choice.reader

    def describe(self) -> str:
        """Describe the image's size and how the file is read, in one line."""
        return f"{self.width}×{self.height} px; {self.choice.describe()}"

    def provenance(self) -> dict[str, Any]:
        """How the file is read, where it differs from the plain case; for stores and predictions.

        It is empty for a file with one 8-bit RGB image and no Orientation tag.
        """
        found = self.choice.provenance()
        if self.choice.orientation != 1:
            found["orientation"] = self.orientation
        return found

    def read_warnings(self) -> list[str]:
        """One line for each reduced pyramid level that was found to be damaged while reading.

        It is asked for when all is read.

        Raises:
            StorageError: the object of a URL was replaced since it was opened.
        """
        if self._remote is not None:
            self._remote.ranged.check_unchanged()
        return [
            f"{self.path}: the reduced level of {w}×{h} px is damaged ({fault}); where it is, a "
            "finer level was read instead"
            for level, fault in sorted(self._damaged.items())
            for w, h in [self._pixels.level_sizes[level]]
        ]

    def close(self) -> None:
        """Close the file."""
        self._pixels.close()
        if self._remote is not None:
            self._remote.close()

    def __enter__(self) -> SlideImage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def fingerprint(self) -> str:
        """Fingerprint of the file: see `virchow_st.slide.space_ranger.fingerprint`."""
        return self._remote.fingerprint() if self._remote else fingerprint(self.path)

    def level_factors(self) -> list[int]:
        """Downsampling factors of the levels in use, in rising order; the first is 1."""
        return sorted(self._level_of_factor)

    def level_factor(self, downsample: float) -> int:
        """Downsampling factor of the coarsest level that is not coarser than ``downsample``.

        `read_region` reads from that level if the region's corner is a multiple of the factor.
        """
        return max(k for k in self._level_of_factor if k <= max(1.0, downsample))

    def read_region(
        self, x0: int, y0: int, width: int, height: int, downsample: float = 1.0
    ) -> tuple[UInt8Array, BoolArray, float]:
        """Read a region, averaged over squares of ``scale`` × ``scale`` full-resolution px.

        The pixels are read from the coarsest pyramid level that is not coarser than ``downsample``
        and has a pixel corner at ``(x0, y0)``. Besides the result, memory is bounded whatever the
        size of the image: 112 MiB (or the source pixels of one output row, if that is more), and a
        cache of 512 MiB for a TIFF's strips, 128 MiB for its tiles, or 32 MiB in OpenSlide.

        Args:
            x0: left edge of the region, full-resolution px; it may lie off the image.
            y0: its top edge, likewise.
            width: its size, full-resolution px.
            height: likewise.
            downsample: upper bound of ``scale``, at least 1.

        Returns:
            (h, w, 3) uint8 RGB, white off the image; (h, w) bool, True for pixels that lie wholly
            on the image; and ``scale``, a whole number of full-resolution px: pixel ``i`` spans
            ``[x0 + i * scale, x0 + (i + 1) * scale)`` across, and likewise down. The last row and
            column may extend beyond the region.

        Raises:
            SlideError: the file is damaged.
            ValueError: an empty region, or ``downsample`` below 1.
        """
        if width < 1 or height < 1 or downsample < 1:
            raise ValueError(f"expected a region and downsample >= 1; got {width}×{height}")
        factors = [
            k for k in self._level_of_factor if k <= downsample and x0 % k == 0 and y0 % k == 0
        ]
        scale = max(factors) * int(downsample / max(factors))
        factors = sorted((k for k in factors if scale % k == 0), reverse=True)
        w, h = -(-width // scale), -(-height // scale)
        rgb = np.empty((h, w, 3), np.uint8)
        there = np.empty((h, w), bool)
        block = scale // factors[0]
        band = max(1, _BAND_PX // (w * block * block))
        for top in range(0, h, band):
            rows = slice(top, min(top + band, h))
            rgb[rows], there[rows] = self._read_band(
                factors, scale, x0, y0 + top * scale, w, rows.stop - top
            )
        on_x, on_y = _wholly_on(x0, w, scale, self.width), _wholly_on(y0, h, scale, self.height)
        return rgb, there & on_y[:, None] & on_x, float(scale)

    def _read_band(
        self, factors: list[int], scale: int, x0: int, y0: int, w: int, h: int
    ) -> tuple[UInt8Array, BoolArray]:
        """(h, w) averages over squares of ``scale`` px, from the coarsest level undamaged there.

        The choice of level depends on the band only, so the result is the same for any order of
        reading.
        """
        for factor in factors:
            try:
                return self._read_averaged(
                    factor, x0 // factor, y0 // factor, w, h, scale // factor
                )
            except SlideError as e:
                if factor == 1:
                    raise
                with self._lock:
                    fault = " ".join(str(e.__cause__ or e).split())[:100]
                    self._damaged.setdefault(self._level_of_factor[factor], fault)
        raise AssertionError("every image has its finest level")

    def _read_averaged(
        self, factor: int, x: int, y: int, w: int, h: int, block: int
    ) -> tuple[UInt8Array, BoolArray]:
        """(h, w) averages over blocks of level pixels, starting at level pixel (x, y)."""
        level = self._level_of_factor[factor]
        level_width, level_height = self._pixels.level_sizes[level]
        size = h * block, w * block
        pixels = None
        there = np.ones((h, w), bool)
        left, right = max(x, 0), min(x + w * block, level_width)
        top, bottom = max(y, 0), min(y + h * block, level_height)
        if left < right and top < bottom:
            rgb, opaque = self._pixels.read(level, left, top, right - left, bottom - top)
            inside = slice(top - y, bottom - y), slice(left - x, right - x)
            if rgb.shape[:2] == size:
                pixels = rgb
            else:
                pixels = np.full((*size, 3), 255, np.uint8)
                pixels[inside] = rgb
            if opaque is not None:
                holes = np.zeros(size, bool)
                holes[inside] = ~opaque
                there &= ~holes.reshape(h, block, w, block).any(axis=(1, 3))
        if pixels is None:  # wholly off the image
            pixels = np.full((*size, 3), 255, np.uint8)
        if block > 1:
            # For a whole factor, INTER_AREA is the plain mean of each block.
            pixels = cv2.resize(pixels, (w, h), interpolation=cv2.INTER_AREA)
        return pixels, there


def _exact_levels(sizes: list[tuple[int, int]]) -> dict[int, int]:
    """Whole downsampling factor → level.

    A level is kept if its size is the finest level's divided by the factor, rounded up or down.
    Other levels have no exact mapping to full-resolution px and are left out.
    """
    levels: dict[int, int] = {}
    width, height = sizes[0]
    for level, (w, h) in enumerate(sizes):
        factor = round(width / w)
        exact = all(abs(full - factor * part) < factor for full, part in ((width, w), (height, h)))
        if exact:
            levels.setdefault(factor, level)
    return levels


def _wholly_on(start: int, n: int, scale: int, size: int) -> BoolArray:
    edges = start + scale * np.arange(n + 1)
    return (edges[:-1] >= 0) & (edges[1:] <= size)

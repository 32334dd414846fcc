"""Three ways to the pixels of a slide image: OpenSlide, tifffile, and OpenCV for small pictures.

Each gives levels of RGB pixels and reads a rectangle of one level; `SlideImage` does the rest.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import openslide
import tifffile
import zarr

from virchow_st.errors import SlideError
from virchow_st.slide.space_ranger import reading
from virchow_st.slide.tiff_tiles import TiffTiles
from virchow_st.types import Array, BoolArray, UInt8Array

# Of a damaged file it logs every odd tag; users get one line, or with --verbose all of it.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_WHAT = "a slide image"
_LARGEST_PICTURE_BYTES = 256 << 20  # of PNG and JPEG, which are decoded wholly
_LARGEST_CHUNK_BYTES = 256 << 20  # of a TIFF's strip or tile, decoded for every region
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Pages as their tags say. By default tifffile believes a description that it wrote itself, also in
# what libvips has made of that file since: a pyramid, which the description does not fit.
_AS_WRITTEN = {"is_shaped": False}
_RGB = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
# Compressions of tiles that are decoded here, by OpenSlide's name of the format: none, LZW, JPEG
# and deflate. Other vendors' tiles overlap, lie apart, or are no TIFF's.
_PLAIN = {"generic-tiff": (1, 5, 7, 8, 32946), "aperio": (7,)}
_CONVERT = "vips tiffsave IMAGE OUT.tif --tile --pyramid --compression jpeg --Q 90 --bigtiff"


class Pixels(Protocol):
    """Levels of RGB pixels, finest first; several threads may read at once."""

    name: str
    level_sizes: list[tuple[int, int]]  # (width, height)

    def read(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> tuple[UInt8Array, BoolArray | None]:
        """Read a rectangle inside a level, in that level's px.

        Returns:
            (height, width, 3) uint8 RGB, transparency dropped onto white, and (height, width) bool
            False where the file has no pixels, or None where it has them all.
        """
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def open_pixels(path: Path) -> Pixels:
    """Open plain TIFFs with tifffile, other formats with OpenSlide; a PNG or JPEG with OpenCV.

    Raises:
        SlideError: missing, damaged, of an unknown format, or not 8-bit RGB.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(8)
    except OSError as e:
        raise SlideError(f"{path}: expected {_WHAT}; {e.strerror}; give the file") from None
    if magic.startswith((b"\x89PNG", b"\xff\xd8\xff")):
        return _ArrayPixels("opencv", path, [_read_picture(path, magic)])
    if not magic.startswith(_TIFF_MAGIC):
        if openslide.OpenSlide.detect_format(str(path)) is None:
            raise SlideError(
                f"{path}: expected an image that OpenSlide or tifffile opens; its format is "
                f"unknown; convert it: {_CONVERT}"
            )
        return _OpenSlidePixels(path)
    with reading(path, "a TIFF image"):
        tiff = tifffile.TiffFile(path, **_AS_WRITTEN)
    try:
        with reading(path, "a TIFF image"):
            levels = _checked_levels(path, tiff)
            vendor = openslide.OpenSlide.detect_format(str(path))
            if vendor is not None and not _is_plain(vendor, levels):
                pixels = _OpenSlidePixels(path)
                # Pyramids in SubIFDs, as OME-TIFF has them, are seen by tifffile alone.
                if len(pixels.level_sizes) >= len(levels):
                    return pixels
                pixels.close()
            return _ArrayPixels(
                "tifffile", path, [_level_array(path, n, level) for n, level in enumerate(levels)]
            )
    finally:
        tiff.close()


def pixels_of(array: UInt8Array) -> Pixels:
    """An image that lies in memory, (H, W, 3) RGB, as one level."""
    return _ArrayPixels("array", Path("image"), [(array, False)])


class _OpenSlidePixels:
    name = "openslide"

    def __init__(self, path: Path) -> None:
        self._path = path
        with reading(path, _WHAT):
            try:
                self._slide = openslide.OpenSlide(str(path))
            except openslide.OpenSlideError as e:
                raise OSError(str(e)) from None
        self.level_sizes = list(self._slide.level_dimensions)

    def read(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> tuple[UInt8Array, BoolArray | None]:
        # OpenSlide wants the corner in level-0 px and divides it by its own downsample.
        downsample = self._slide.level_downsamples[level]
        corner = (round(x * downsample), round(y * downsample))
        with reading(self._path, _WHAT):
            try:
                rgba = np.asarray(self._slide.read_region(corner, level, (width, height)))
            except openslide.OpenSlideError as e:
                raise OSError(str(e)) from None
        return _onto_white(rgba)

    def close(self) -> None:
        self._slide.close()


class _ArrayPixels:
    """Levels that are sliced: tiles and strips, plain pixels, pictures in memory."""

    def __init__(self, name: str, path: Path, levels: list[tuple[Any, bool]]) -> None:
        self.name = name
        self._path = path
        self._levels = levels  # (array, planes first)
        self.level_sizes = []
        for array, planes_first in levels:
            height, width = array.shape[1:] if planes_first else array.shape[:2]
            self.level_sizes.append((width, height))

    def read(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> tuple[UInt8Array, BoolArray | None]:
        array, planes_first = self._levels[level]
        rows, cols = slice(y, y + height), slice(x, x + width)
        with reading(self._path, _WHAT):
            if planes_first:
                return _onto_white(np.moveaxis(np.asarray(array[:, rows, cols]), 0, 2))
            return _onto_white(np.asarray(array[rows, cols]))

    def close(self) -> None:
        for array, _ in self._levels:
            if isinstance(array, TiffTiles):
                array.close()
            elif isinstance(array, zarr.Array):
                array.store.close()
        self._levels = []


class _Plain:
    """Pixels that lie in the file as they are; mapped for each slice alone, so that none stay."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...]) -> None:
        self._path, self._offset = path, offset
        self.shape = shape

    def __getitem__(self, place: Any) -> Array:
        return np.array(np.memmap(self._path, np.uint8, "r", self._offset, self.shape)[place])


def _onto_white(pixels: Array) -> tuple[UInt8Array, BoolArray | None]:
    """RGB (h, w, 3) and where there are pixels, of (h, w, 3) RGB or (h, w, 4) RGBA."""
    if pixels.shape[2] == 3:
        return np.ascontiguousarray(pixels), None
    rgb = cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB)
    alpha = pixels[..., 3]
    if alpha.min() == 255:
        return rgb, None
    weight = alpha[..., None].astype(np.uint16)
    return ((rgb * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8), alpha > 0


def _read_picture(path: Path, magic: bytes) -> tuple[Array, bool]:
    """The whole of a PNG or JPEG, RGB or RGBA; OpenCV fills a cut-off one with grey, silently."""
    if (n_bytes := path.stat().st_size) > _LARGEST_PICTURE_BYTES:
        raise SlideError(
            f"{path}: expected a PNG or JPEG of up to {_LARGEST_PICTURE_BYTES >> 20} MiB, decoded "
            f"whole; got {n_bytes >> 20} MiB; convert it: {_CONVERT}"
        )
    content = np.fromfile(path, np.uint8)
    is_png = magic.startswith(b"\x89PNG")
    with reading(path, "a PNG or JPEG image"):
        if (b"IEND" if is_png else b"\xff\xd9") not in content[-64:].tobytes():
            raise ValueError("its end is missing")
        pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise ValueError("OpenCV cannot decode it")
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    if samples < 3 or pixels.dtype != np.uint8:
        raise _not_rgb(path, f"{samples} channels of {pixels.dtype}")
    code = cv2.COLOR_BGR2RGB if samples == 3 else cv2.COLOR_BGRA2RGBA
    return cv2.cvtColor(pixels, code), False


def _checked_levels(path: Path, tiff: tifffile.TiffFile) -> list[Any]:
    """The levels of a TIFF's first series, after checks that its pixels are all there and RGB."""
    series = tiff.series[0]
    page = series.keyframe
    separate = series.axes in ("CYX", "SYX") and series.shape[0] in (3, 4)
    is_rgb = page.samplesperpixel in (3, 4) and page.photometric in _RGB
    together = series.axes in ("YXS", "YXC") and is_rgb
    if page.dtype != np.uint8 or not (together or separate):
        raise _not_rgb(path, f"axes {series.axes}, {series.dtype}, {page.photometric.name}")
    for level in series.levels:
        if 0 in level.shape:
            raise ValueError(f"a level of it has the shape {level.shape}")
        # Also keeps absurd sizes from OpenSlide, which ends the process where memory fails it.
        chunk_bytes = int(np.prod(level.keyframe.chunks, dtype=np.float64))
        if chunk_bytes > _LARGEST_CHUNK_BYTES and level.dataoffset is None:
            raise SlideError(
                f"{path}: expected tiles, or strips of up to {_LARGEST_CHUNK_BYTES >> 20} MiB; "
                f"one holds {chunk_bytes >> 20} MiB, read anew for every patch; "
                f"convert it: {_CONVERT}"
            )
        for p in level.pages:
            ends = (o + n for o, n in zip(p.dataoffsets, p.databytecounts, strict=True))
            if (end := max(ends, default=0)) > tiff.filehandle.size:
                raise ValueError(f"its pixels end at byte {end} of {tiff.filehandle.size}")
    return list(series.levels)


def _is_plain(vendor: str, levels: list[Any]) -> bool:
    """Whether the tiles of a file are all there is to its pixels.

    Then they need no OpenSlide, which takes five times as long to put a region together.
    """
    compressions = _PLAIN.get(vendor, ())
    return all(
        level.axes in ("YXS", "YXC")
        and level.keyframe.is_tiled
        and level.keyframe.compression in compressions
        for level in levels
    )


def _level_array(path: Path, number: int, level: Any) -> tuple[Any, bool]:
    planes_first = level.axes in ("CYX", "SYX")
    # Plain pixels in one piece would come as one chunk.
    if level.dataoffset is not None:
        return _Plain(path, level.dataoffset, level.shape), planes_first
    if not planes_first:
        return TiffTiles(path, level), planes_first
    planes = tifffile.imread(path, aszarr=True, level=number, **_AS_WRITTEN)
    return zarr.open_array(planes, mode="r"), planes_first


def _not_rgb(path: Path, actual: str) -> SlideError:
    return SlideError(
        f"{path}: expected an 8-bit RGB H&E image; got {actual}; give the microscope image, not "
        f"cytassist_image.tiff or a fluorescence scan, or convert it: {_CONVERT}"
    )

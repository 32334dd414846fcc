"""Decides how a slide image is read: which reader, which image of the file, which samples.

All such decisions are made here, from the file's format and tags. Whether the pixels can be
H&E-stained tissue is decided separately, in `virchow_st.slide.stain_check`.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile

from virchow_st.cloud.ranged import RangedFile
from virchow_st.errors import SlideError
from virchow_st.slide.backends import OpenSlidePixels, Pixels, TiffPixels
from virchow_st.slide.choice import ImageChoice
from virchow_st.slide.foreign import CONVERT, way_out
from virchow_st.slide.mpp import MppPlace, ome_place, openslide_place, tiff_places
from virchow_st.slide.ome import OmeImage, ome_images
from virchow_st.slide.picture import read_picture
from virchow_st.slide.space_ranger import reading
from virchow_st.slide.tiff_choice import TiffChoice, choose_in_tiff
from virchow_st.slide.tiff_levels import (
    is_plain,
    level_sources,
    levels_with_samples,
    whole_levels,
)
from virchow_st.types import Array

# tifffile logs every malformed tag of a damaged file; the user sees one error line instead, or
# the whole log with --verbose.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PICTURE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff")
# Read pages by their tags, and from this file only. By default tifffile trusts an image description
# that it wrote itself, even if libvips has since rewritten the file and copied the description, and
# it opens the other files that OME-XML names.
_AS_WRITTEN: dict[str, Any] = {"is_shaped": False, "_multifile": False}
_WITHOUT_DESCRIPTIONS: dict[str, Any] = {**_AS_WRITTEN, "is_ome": False, "is_imagej": False}
# OpenSlide's name for TIFFs without a vendor-specific layout.
_GENERIC = "generic-tiff"
# Tile compressions that this package decodes itself, per format as OpenSlide names it: none, LZW,
# JPEG and deflate. Other vendors' tiles overlap, leave gaps, or are not stored as TIFF tiles.
_DECODED_HERE = {_GENERIC: (1, 5, 7, 8, 32946), "aperio": (7,)}
_NAMES = {
    "aperio": "Aperio SVS", "dicom": "DICOM", "generic-tiff": "TIFF", "hamamatsu": "Hamamatsu",
    "leica": "Leica SCN", "mirax": "MIRAX", "philips-tiff": "Philips TIFF", "sakura": "Sakura",
    "trestle": "Trestle", "ventana": "Ventana", "zeiss": "Zeiss CZI",
}  # fmt: skip


class NeedsWholeFileError(Exception):
    """An image in object storage is of a kind that is not read by byte range."""


def open_image(path: Path, ranged: RangedFile | None = None) -> tuple[Pixels, ImageChoice]:
    """Open a slide image and decide how to read it.

    OpenSlide detects the format first, because the leading bytes can mislead: the ``.mrxs`` file
    of a MIRAX slide is a JPEG thumbnail. Plain TIFFs are then decoded by this package, which is
    five times as fast as OpenSlide.

    Args:
        path: the file, as `slide_file` gives it.
        ranged: reads the bytes of a file in object storage, and has fetched its tags.

    Returns:
        The pixels, and how they are read.

    Raises:
        SlideError: the file is missing, damaged, not an RGB image, or of a format that cannot be
            opened (the message says how to convert it).
        NeedsWholeFileError: an image in object storage has to be fetched as a whole.
    """
    try:
        with ranged.stream() if ranged else path.open("rb") as file:
            magic = file.read(8)
    except OSError as e:
        raise SlideError(f"{path}: expected a slide image; {e.strerror}; give the file") from None
    vendor = openslide.OpenSlide.detect_format(str(ranged.kept if ranged else path))
    if ranged is not None:
        if magic.startswith(_TIFF_MAGIC) and vendor in (None, *_DECODED_HERE):
            return _open_tiff(path, vendor, ranged)
        raise NeedsWholeFileError
    if vendor in (None, _GENERIC) and (foreign := way_out(path)) is not None:
        raise SlideError(
            f"{path}: expected an image that can be read; this is {foreign[0]}; {foreign[1]}"
        )
    if magic.startswith(_TIFF_MAGIC) and vendor in (None, *_DECODED_HERE):
        return _open_tiff(path, vendor)
    if vendor is not None:
        try:
            pixels = OpenSlidePixels(path)
        except SlideError as e:
            if (foreign := way_out(path)) is None:
                raise
            raise SlideError(f"{e}; this is {foreign[0]}: {foreign[1]}") from None
        places = tuple(openslide_place(pixels.properties))
        return pixels, ImageChoice("openslide", _NAMES.get(vendor, vendor), mpp_places=places)
    if magic.startswith(_PICTURE_MAGIC):
        return read_picture(path)
    raise SlideError(
        f"{path}: expected an image that OpenSlide or tifffile opens; its format is unknown; "
        f"convert it: {CONVERT}"
    )


def slide_file(path: Path) -> Path:
    """The file to open for a path: the path itself, or the largest ``.dcm`` of a DICOM folder."""
    if not path.is_dir():
        return path
    parts = [p for p in path.glob("*.dcm") if not p.name.startswith(".") and p.is_file()]
    return max(parts, key=lambda p: (p.stat().st_size, p.name), default=path)


def _open_tiff(
    path: Path, vendor: str | None, ranged: RangedFile | None = None
) -> tuple[Pixels, ImageChoice]:
    with ExitStack() as stack:
        stack.enter_context(reading(path, "a TIFF image"))
        tiff = _tiff(path, ranged, stack, _AS_WRITTEN)
        series, images, labels = _series(path, tiff, ranged, stack)
        choice = choose_in_tiff(path, series, images, labels)
        if ranged is not None and not _is_tiled(choice):
            raise NeedsWholeFileError
        levels, warnings = whole_levels(path, choice, ranged)
        key = choice.series.keyframe
        kind = "tiles" if key.is_tiled else "strips"
        name = "TIFF" if vendor is None else _NAMES[vendor]
        image = images[choice.index] if choice.index < len(images) else None
        found = ImageChoice(
            "tifffile", f"{name} in {kind}", choice.series_text, choice.plane_text,
            choice.colour_text, orientation=_orientation(tiff),
            mpp_places=_mpp_places(ranged.kept if ranged else path, vendor, tiff, image),
            warnings=(*choice.warnings, *warnings),
        )  # fmt: skip
        by_openslide = vendor is not None and _is_for_openslide(vendor, choice, levels)
        if choice.needs_libtiff and not by_openslide:
            raise SlideError(
                f"{path}: expected RGB, or YCbCr compressed as JPEG; got YCbCr in another way; "
                f"convert it: {CONVERT}"
            )
        if by_openslide:
            if ranged is not None:
                raise NeedsWholeFileError
            sizes = [(lv.keyframe.imagewidth, lv.keyframe.imagelength) for lv in levels]
            opened = OpenSlidePixels(path, sizes)
            # Only tifffile finds pyramid levels in SubIFDs, where OME-TIFF stores them.
            if len(opened.level_sizes) >= len(levels) or choice.needs_libtiff:
                return opened, replace(found, reader="openslide")
            opened.close()
        sources = [level_sources(path, level, choice, ranged) for level in levels]
        tiff_levels, bits, colour, more = levels_with_samples(sources, choice)
        found = replace(found, bits=bits, warnings=(*found.warnings, *more))
        return TiffPixels(path, tiff_levels), found if colour is None else replace(
            found, colour=colour
        )


def _tiff(
    path: Path, ranged: RangedFile | None, stack: ExitStack, options: dict[str, Any]
) -> tifffile.TiffFile:
    if ranged is None:
        return stack.enter_context(tifffile.TiffFile(path, **options))
    return stack.enter_context(tifffile.TiffFile(ranged.stream(), name=path.name, **options))


def _is_tiled(choice: TiffChoice) -> bool:
    """Whether all levels are stored in tiles, and none as uncompressed pixels in one piece."""
    levels = choice.series.levels
    return all(level.keyframe.is_tiled and not is_plain(level, choice) for level in levels)


def _series(
    path: Path, tiff: tifffile.TiffFile, ranged: RangedFile | None, stack: ExitStack
) -> tuple[list[Any], list[OmeImage], tuple[str, ...]]:
    """The series of a TIFF, their descriptions in OME-XML, and ImageJ's channel names.

    When libvips makes a pyramid, it copies the OME or ImageJ description of the original, which no
    longer fits the pages. In that case the description is ignored and the pages are read by their
    tags, through a second handle that ``stack`` closes.
    """
    try:
        series = list(tiff.series)
    except RuntimeError:
        series = []
    if series and not (tiff.is_ome or tiff.is_imagej):
        return series, [], ()
    images = ome_images(tiff.ome_metadata) if tiff.is_ome and tiff.ome_metadata else []
    if len(series) > 1 or (series and len(series[0].levels) > 1):
        return series, images, ()
    plain = _tiff(path, ranged, stack, _WITHOUT_DESCRIPTIONS)
    as_pages = list(plain.series)
    is_whole = bool(series) and series[0].pages[0] is not None
    is_pyramid = len(as_pages[0].levels) > 1
    if not is_whole or (is_pyramid and as_pages[0].shape == series[0].shape):
        return as_pages, images[:1], ()
    labels = (tiff.imagej_metadata or {}).get("Labels", ()) if tiff.is_imagej else ()
    return series, images, tuple(map(str, labels))


def _mpp_places(
    path: Path, vendor: str | None, tiff: tifffile.TiffFile, image: OmeImage | None
) -> tuple[MppPlace, ...]:
    places = ome_place(image)
    if vendor is not None:
        with closing(OpenSlidePixels(path)) as pixels:
            places += openslide_place(pixels.properties)
    imagej = (tiff.imagej_metadata or {}) if tiff.is_imagej else None
    return (*places, *tiff_places(tiff.pages.first.tags, imagej))


def _orientation(tiff: tifffile.TiffFile) -> int:
    try:
        value = int(tiff.pages.first.tags.valueof("Orientation", default=1))
    except (TypeError, ValueError):
        return 1
    return value if 1 <= value <= 8 else 1


def _is_for_openslide(vendor: str, choice: TiffChoice, levels: list[Any]) -> bool:
    """Whether OpenSlide should read a TIFF, because its tiles are not of a kind decoded here.

    OpenSlide can only read the first image and plane of a file, with three 8-bit samples, and
    takes five times as long to assemble a region; it is used only where it is needed.
    """
    key = choice.series.keyframe
    is_its_image = choice.index == 0 and choice.page == 0 and not choice.apart
    if not is_its_image or choice.plane_text or key.samplesperpixel != 3 or key.dtype != np.uint8:
        return False
    return not all(
        level.keyframe.is_tiled and level.keyframe.compression in _DECODED_HERE[vendor]
        for level in levels
    )


def image_of_array(array: Array) -> ImageChoice:
    """The `ImageChoice` of an image in memory."""
    return ImageChoice("array", f"array of {array.dtype}")

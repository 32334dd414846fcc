"""Formats that no reader here opens, or whose own file is an index or a thumbnail: the way out.

The pixels of a MIRAX slide lie in a folder beside its ``.mrxs``, which is a JPEG thumbnail; those
of an Olympus slide lie in ``.ets`` files, and its ``.vsi`` is a small TIFF. Whoever goes by the
first bytes of such a file reads the thumbnail.
"""

from __future__ import annotations

from pathlib import Path

CONVERT = "vips tiffsave IMAGE OUT.tif --tile --pyramid --compression jpeg --Q 89 --bigtiff"
"""Makes a tiled pyramid of what libvips opens. Quality 89, as from 90 on libvips writes another
kind of JPEG (RGB without chroma subsampling), with false colours in 8.15.0 and 8.15.3 (libvips
issues 3743, 3784 and 4164)."""

_BIO_FORMATS = "export it as an RGB OME-TIFF with QuPath or with Bio-Formats' bfconvert"
_VENDOR = "export it as TIFF or SVS with the scanner's own software"
# By the file's ending: what the file is, and what to do where OpenSlide cannot open it. {stem} is
# the file's name without ending.
_WAYS_OUT: dict[str, tuple[str, str]] = {
    ".mrxs": (
        "a MIRAX slide, whose pixels lie in the folder {stem} beside it",
        "copy the whole folder {stem} beside it",
    ),
    ".vms": ("an index of a Hamamatsu slide", "copy all files that it names beside it"),
    ".vmu": ("an index of a Hamamatsu slide", "copy all files that it names beside it"),
    ".ndpis": ("a list of fluorescence images", "give the .ndpi of the H&E scan"),
    ".afi": ("a list of fluorescence images", "give the .svs of the H&E scan"),
    ".vsi": (
        "the overview of an Olympus slide, whose pixels lie in the folder _{stem}_ beside it",
        _BIO_FORMATS,
    ),
    ".ets": ("a part of an Olympus slide", "open its .vsi: " + _BIO_FORMATS),
    ".czi": ("a Zeiss slide of a kind that OpenSlide does not open", _BIO_FORMATS),
    ".zvi": ("a Zeiss image", _BIO_FORMATS),
    ".lif": ("a Leica LAS image", _BIO_FORMATS),
    ".lof": ("a Leica LAS image", _BIO_FORMATS),
    ".nd2": ("a Nikon image", _BIO_FORMATS),
    ".oir": ("an Olympus image", _BIO_FORMATS),
    ".lsm": ("a Zeiss confocal image", _BIO_FORMATS),
    ".dcm": (
        "a DICOM file that is no slide for OpenSlide",
        "give one of the .dcm files of the whole-slide series, all of them in one folder",
    ),
    ".isyntax": ("a Philips slide", _VENDOR),
    ".i2syntax": ("a Philips slide", _VENDOR),
    ".mds": ("a Motic slide", _VENDOR),
    ".mdsx": ("a Motic slide", _VENDOR),
    ".kfb": ("a KFBio slide", _VENDOR),
    ".sdpc": ("a SQRAY slide", _VENDOR),
    ".tmap": ("a UNIC slide", _VENDOR),
    ".svslide": ("a Sakura slide", _VENDOR),
    ".dzi": ("an index of Deep Zoom tiles", "give the slide that they were made from"),
    ".szi": ("an archive of Deep Zoom tiles", "give the slide that they were made from"),
    ".xml": ("an index, not an image", "give the image file that it describes"),
    ".ome": ("an index, not an image", "give the OME-TIFF that it describes"),
    ".zarr": ("a Zarr folder", _BIO_FORMATS),
}


def way_out(path: Path) -> tuple[str, str] | None:
    """What a file is by its ending, and what to do with it; None for endings of plain images.

    Ask OpenSlide first: it opens many of these formats where all their files are there. A TIFF
    with another ending beside a folder ``_NAME_`` of ``.ets`` files is an Olympus overview too.
    """
    suffix = path.suffix.lower()
    if suffix not in _WAYS_OUT and any(path.parent.glob(f"_{_literal(path.stem)}_/*/*.ets")):
        suffix = ".vsi"
    if suffix not in _WAYS_OUT:
        return None
    what, remedy = _WAYS_OUT[suffix]
    return what.format(stem=path.stem), remedy.format(stem=path.stem)


def _literal(name: str) -> str:
    """A name as a glob pattern that matches it alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)

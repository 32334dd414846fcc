"""Advice for image formats that cannot be opened, and for files that are an index or a thumbnail.

The pixels of a MIRAX slide are in a folder beside its ``.mrxs`` file, which itself is a JPEG
thumbnail; those of an Olympus slide are in ``.ets`` files, and its ``.vsi`` file is a small TIFF. A
reader that trusts the first bytes of such a file would silently read the thumbnail.
"""

from __future__ import annotations

from pathlib import Path

CONVERT = "vips tiffsave IMAGE OUT.tif --tile --pyramid --compression jpeg --Q 89 --bigtiff"
"""Converts any image that libvips opens to a tiled pyramid. The quality is 89 because from 90 on
libvips writes RGB JPEG without chroma subsampling, with false colours in libvips 8.15.0 and 8.15.3
(libvips issues 3743, 3784 and 4164)."""

_BIO_FORMATS = "export it as an RGB OME-TIFF with QuPath or with Bio-Formats' bfconvert"
_VENDOR = "export it as TIFF or SVS with the scanner's own software"
# File extension → what the file is, and what to do if OpenSlide cannot open it. {stem} stands for
# the file's name without its extension.
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
    """What a file is, judged by its extension, and what the user should do with it.

    Try OpenSlide first: it opens many of these formats if all their files are present. A TIFF with
    another extension beside a folder ``_NAME_`` of ``.ets`` files is an Olympus overview, too.

    Returns:
        The kind of file and the advice, or None if the extension is that of a plain image.

    Example:
        >>> way_out(Path("scan.kfb"))
        ('a KFBio slide', "export it as TIFF or SVS with the scanner's own software")
    """
    suffix = path.suffix.lower()
    if suffix not in _WAYS_OUT and any(path.parent.glob(f"_{_literal(path.stem)}_/*/*.ets")):
        suffix = ".vsi"
    if suffix not in _WAYS_OUT:
        return None
    what, remedy = _WAYS_OUT[suffix]
    return what.format(stem=path.stem), remedy.format(stem=path.stem)


def _literal(name: str) -> str:
    """Escape a name so that, as a glob pattern, it matches only itself."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)

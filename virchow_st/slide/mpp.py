"""How fine a slide image is, µm per pixel, as its file tells.

Only for slides without counts: a Visium HD slide has it from its bins, which are surer.
"""

from __future__ import annotations

from pathlib import Path

import openslide
import tifffile

from virchow_st.errors import SlideError
from virchow_st.slide.space_ranger import reading
from virchow_st.types import Mpp

# Outside lie printing resolutions such as 72 dpi (353 µm/px), which say nothing of the specimen.
_FINEST, _COARSEST = 0.05, 10.0
_LARGEST_WITH_DETAIL = 1.2  # coarser than 1 µm/px within a scanner's tolerance shows no nuclei
_UM_PER_UNIT = {2: 25_400.0, 3: 10_000.0}  # TIFF's ResolutionUnit: inch, centimetre


def slide_mpp(path: Path, given: float = 0.0) -> Mpp:
    """µm per full-resolution pixel of a slide image.

    Args:
        path: the image.
        given: what the user says; 0 to take what the file says: OpenSlide's properties or the
            TIFF's resolution.

    Raises:
        SlideError: the file says none that can be a microscope's and none is given, or the image
            is too coarse to show nuclei.
    """
    mpp = given or _from_file(path)
    if not mpp:
        raise SlideError(
            f"{path}: expected its µm per pixel in the file; it says none; "
            "give it with --mpp (about 0.25 for a 40x scan, 0.5 for 20x)"
        )
    return check_mpp(str(path), mpp)


def check_mpp(source: str, mpp: float) -> Mpp:
    """Raise `SlideError` unless a microscope has such pixels and nuclei can be seen in them."""
    if not _FINEST <= mpp <= _LARGEST_WITH_DETAIL:
        raise SlideError(
            f"{source}: expected {_FINEST} to {_LARGEST_WITH_DETAIL} µm per pixel, so that nuclei "
            f"can be seen; got {mpp:g}; give a scan at 20x or 40x, or the right --mpp"
        )
    return Mpp(mpp)


def _from_file(path: Path) -> float | None:
    found = _from_openslide(path)
    if found is None and path.suffix.lower() in (".tif", ".tiff", ".btf", ".tf8"):
        found = _from_tiff(path)
    return found if found is not None and _FINEST <= found <= _COARSEST else None


def _from_openslide(path: Path) -> float | None:
    """Geometric mean of the two directions, which scanners give to within a few in a thousand."""
    if openslide.OpenSlide.detect_format(str(path)) is None:
        return None
    with reading(path, "a slide image"):
        try:
            with openslide.OpenSlide(str(path)) as slide:
                properties = slide.properties
                x = properties.get(openslide.PROPERTY_NAME_MPP_X)
                y = properties.get(openslide.PROPERTY_NAME_MPP_Y)
                return (float(x) * float(y)) ** 0.5 if x and y else None
        except openslide.OpenSlideError as e:
            raise OSError(str(e)) from None


def _from_tiff(path: Path) -> float | None:
    with reading(path, "a TIFF image"), tifffile.TiffFile(path) as tiff:
        tags = tiff.pages.first.tags
        unit = _UM_PER_UNIT.get(int(tags.valueof("ResolutionUnit", default=2)))
        per_unit = [tags.valueof(name) for name in ("XResolution", "YResolution")]
    if unit is None or None in per_unit:
        return None
    x, y = (numerator / denominator for numerator, denominator in per_unit)
    return unit / (x * y) ** 0.5 if x > 0 and y > 0 else None

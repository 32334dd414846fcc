"""Micrometres per pixel of a slide image, from its file's metadata.

This is for slides without counts; for a Visium HD slide the bins' positions give a more reliable
value.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from virchow_st.errors import SlideError
from virchow_st.slide.ome import UM_PER_UNIT, OmeImage
from virchow_st.types import Mpp

# Values outside this range are printing resolutions, such as 72 dpi (353 µm/px), which are
# unrelated to the specimen.
_FINEST, _COARSEST = 0.05, 10.0
_LARGEST_WITH_DETAIL = 1.2  # nuclei cannot be seen beyond 1 µm/px; the rest is scanner tolerance
_UM_PER_RESOLUTION_UNIT = {2: 25_400.0, 3: 10_000.0}  # TIFF's ResolutionUnit: inch, centimetre
_NO_UNIT = 1
_MOST_OBLONG = 1.05  # largest ratio of a pixel's longer side to its shorter one
_AGREE = 1.02  # two values agree if their ratio is at most this
_APERIO = re.compile(r"\|\s*MPP\s*=\s*([0-9.]+)")


class MppPlace(NamedTuple):
    """A value of µm per pixel found in a file's metadata; it may be implausible.

    Attributes:
        name: the source within the file, such as ``"OME-XML"``.
        x: width of a pixel, µm.
        y: its height, µm.

    Example:
        >>> MppPlace("OpenSlide", 0.25, 0.25).mpp
        0.25
        >>> MppPlace("its resolution", 352.8, 352.8).mpp is None  # 72 dpi
        True
    """

    name: str
    x: float
    y: float

    @property
    def mpp(self) -> float | None:
        """Geometric mean of width and height, µm; None if a microscope cannot have such pixels.

        Width and height that scanners report differ by a few in a thousand.
        """
        if not (self.x > 0 and self.y > 0):  # also refuses NaN
            return None
        mean = (self.x * self.y) ** 0.5
        is_square = max(self.x / self.y, self.y / self.x) <= _MOST_OBLONG
        return mean if is_square and _FINEST <= mean <= _COARSEST else None


def slide_mpp(path: object, places: tuple[MppPlace, ...], given: float = 0.0) -> Mpp:
    """µm per full-resolution pixel of a slide image.

    Args:
        path: the image, for the error message.
        places: values in its file (`virchow_st.slide.choice.ImageChoice.mpp_places`), of which
            the first plausible one is used.
        given: the user's value, which overrides the file's; 0 for none.

    Raises:
        SlideError: neither the file nor the user gives a plausible value, or the image is too
            coarse to show nuclei.

    Example:
        >>> slide_mpp("slide.svs", (MppPlace("OpenSlide", 0.25, 0.25),))
        0.25
    """
    found = next((place.mpp for place in places if place.mpp), None)
    if not (mpp := given or found):
        values = ", ".join(f"{p.name}: {p.x:g} × {p.y:g}" for p in places)
        raise SlideError(
            f"{path}: expected µm per pixel in the file; found "
            f"{f'no plausible value ({values})' if values else 'none'}; give it with --mpp (about "
            "0.25 for a 40x scan, 0.5 for 20x)"
        )
    return check_mpp(str(path), mpp)


def describe_mpp(places: tuple[MppPlace, ...], given: float = 0.0) -> str:
    """Describe the source of the value that `slide_mpp` uses."""
    if given:
        return "as given"
    return next((f"by {place.name}" for place in places if place.mpp), "")


def mpp_warning(places: tuple[MppPlace, ...], given: float = 0.0) -> str | None:
    """A warning if plausible values in the file disagree with each other or with the user's."""
    values = [("--mpp", given)] if given else []
    values += [(place.name, mpp) for place in places if (mpp := place.mpp) is not None]
    for name, mpp in values[1:]:
        first_name, first = values[0]
        if not 1 / _AGREE <= mpp / first <= _AGREE:
            return (
                f"{first_name} gives {first:.4g} µm per pixel, {name} {mpp:.4g}; the first value "
                "is used"
            )
    return None


def check_mpp(source: str, mpp: float) -> Mpp:
    """Raise `SlideError` unless ``mpp`` is plausible for a scan that shows nuclei."""
    if not _FINEST <= mpp <= _LARGEST_WITH_DETAIL:
        raise SlideError(
            f"{source}: expected {_FINEST} to {_LARGEST_WITH_DETAIL} µm per pixel, so that nuclei "
            f"can be seen; got {mpp:g}; give a scan at 20x or 40x, or the right --mpp"
        )
    return Mpp(mpp)


def openslide_place(properties: Any) -> list[MppPlace]:
    """The value of OpenSlide's properties ``openslide.mpp-x`` and ``openslide.mpp-y``, if any."""
    x, y = (_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    return [MppPlace("OpenSlide", x, y)] if x is not None and y is not None else []


def ome_place(image: OmeImage | None) -> list[MppPlace]:
    """The value of OME-XML's ``PhysicalSizeX`` and ``PhysicalSizeY``, if any."""
    if image is None or image.um_per_px is None:
        return []
    return [MppPlace("OME-XML", *image.um_per_px)]


def tiff_places(tags: Any, imagej: dict[str, Any] | None) -> list[MppPlace]:
    """The values in a TIFF's resolution tags (units by tag or ImageJ) and Aperio's description."""
    places = []
    per_unit = [tags.valueof(name) for name in ("XResolution", "YResolution")]
    sides: list[float] = []
    if None not in per_unit:
        sides = [float(denominator) / numerator for numerator, denominator in per_unit if numerator]
    if len(sides) == 2:
        # ImageJ leaves the tag without a unit if its own unit has no code there. A unit in the tag
        # of an ImageJ file means that another program rewrote it and copied the description.
        tag = int(tags.valueof("ResolutionUnit", default=2 if imagej is None else _NO_UNIT))
        unit, name = _UM_PER_RESOLUTION_UNIT.get(tag), "the TIFF's resolution"
        if imagej is not None and tag == _NO_UNIT:
            unit, name = UM_PER_UNIT.get(_escaped(str(imagej.get("unit", "")))), "ImageJ"
        if unit is not None:
            places.append(MppPlace(name, sides[0] * unit, sides[1] * unit))
    description = tags.valueof("ImageDescription", default="")
    if isinstance(description, str) and (aperio := _APERIO.search(description)):
        mpp = _number(aperio[1])
        places += [] if mpp is None else [MppPlace("Aperio's description", mpp, mpp)]
    return places


def dpi_place(dpi: tuple[float, float] | None) -> list[MppPlace]:
    """The value from a PNG's or JPEG's resolution, if it has one."""
    if dpi is None or not min(dpi) > 0:
        return []
    return [MppPlace("its resolution", 25_400.0 / dpi[0], 25_400.0 / dpi[1])]


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _escaped(unit: str) -> str:
    r"""ImageJ writes ``\u00B5m`` for µm."""
    return unit.replace("\\u00B5", "µ").replace("\\u00b5", "µ").strip().lower()

"""How fine a slide image is, µm per pixel, as its file tells.

Only for slides without counts: a Visium HD slide has it from its bins, which are surer.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from virchow_st.errors import SlideError
from virchow_st.slide.ome import UM_PER_UNIT, OmeImage
from virchow_st.types import Mpp

# Outside lie printing resolutions such as 72 dpi (353 µm/px), which say nothing of the specimen.
_FINEST, _COARSEST = 0.05, 10.0
_LARGEST_WITH_DETAIL = 1.2  # coarser than 1 µm/px within a scanner's tolerance shows no nuclei
_UM_PER_RESOLUTION_UNIT = {2: 25_400.0, 3: 10_000.0}  # TIFF's ResolutionUnit: inch, centimetre
_NO_UNIT = 1
_MOST_OBLONG = 1.05  # a pixel's longer side over its shorter one
_AGREE = 1.02  # ratio of two places that say the same
_APERIO = re.compile(r"\|\s*MPP\s*=\s*([0-9.]+)")


class MppPlace(NamedTuple):
    """A place in a file that tells µm per pixel, across and down, whatever it is worth."""

    name: str
    x: float
    y: float

    @property
    def mpp(self) -> float | None:
        """Geometric mean of both directions; None where no microscope has such pixels.

        Scanners give the directions to within a few in a thousand of each other.
        """
        if not (self.x > 0 and self.y > 0):  # also where one is not a number
            return None
        mean = (self.x * self.y) ** 0.5
        is_square = max(self.x / self.y, self.y / self.x) <= _MOST_OBLONG
        return mean if is_square and _FINEST <= mean <= _COARSEST else None


def slide_mpp(path: object, places: tuple[MppPlace, ...], given: float = 0.0) -> Mpp:
    """µm per full-resolution pixel of a slide image.

    Args:
        path: the image, for the error.
        places: what its file says (`virchow_st.slide.choice.ImageChoice.mpp_places`).
        given: what the user says; 0 to take what the file says.

    Raises:
        SlideError: the file says none that can be a microscope's and none is given, or the image
            is too coarse to show nuclei.
    """
    found = next((place.mpp for place in places if place.mpp), None)
    if not (mpp := given or found):
        told = ", ".join(f"{p.name} says {p.x:g} × {p.y:g}" for p in places)
        raise SlideError(
            f"{path}: expected its µm per pixel in the file; it says none that a microscope has"
            f"{f' ({told})' if told else ''}; give it with --mpp (about 0.25 for a 40x scan, 0.5 "
            "for 20x)"
        )
    return check_mpp(str(path), mpp)


def describe_mpp(places: tuple[MppPlace, ...], given: float = 0.0) -> str:
    """Where the µm per pixel come from, in words."""
    if given:
        return "as given"
    return next((f"by {place.name}" for place in places if place.mpp), "")


def mpp_warning(places: tuple[MppPlace, ...], given: float = 0.0) -> str | None:
    """A line where the places that could be right, or the user and they, disagree."""
    sound = [(place.name, place.mpp) for place in places if place.mpp]
    said = ([("--mpp", given)] if given else []) + [(name, mpp) for name, mpp in sound if mpp]
    for name, mpp in said[1:]:
        if not 1 / _AGREE <= mpp / said[0][1] <= _AGREE:
            return (
                f"{said[0][0]} says {said[0][1]:.4g} µm per pixel, {name} {mpp:.4g}; the first is "
                "taken"
            )
    return None


def check_mpp(source: str, mpp: float) -> Mpp:
    """Raise `SlideError` unless a microscope has such pixels and nuclei can be seen in them."""
    if not _FINEST <= mpp <= _LARGEST_WITH_DETAIL:
        raise SlideError(
            f"{source}: expected {_FINEST} to {_LARGEST_WITH_DETAIL} µm per pixel, so that nuclei "
            f"can be seen; got {mpp:g}; give a scan at 20x or 40x, or the right --mpp"
        )
    return Mpp(mpp)


def openslide_place(properties: Any) -> list[MppPlace]:
    """OpenSlide's ``openslide.mpp-x`` and ``openslide.mpp-y``."""
    x, y = (_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    return [MppPlace("OpenSlide", x, y)] if x is not None and y is not None else []


def ome_place(image: OmeImage | None) -> list[MppPlace]:
    """OME-XML's ``PhysicalSizeX`` and ``PhysicalSizeY``."""
    if image is None or image.um_per_px is None:
        return []
    return [MppPlace("OME-XML", *image.um_per_px)]


def tiff_places(tags: Any, imagej: dict[str, Any] | None) -> list[MppPlace]:
    """A TIFF's resolution, in the unit that its tag or ImageJ's metadata names; Aperio's MPP."""
    places = []
    per_unit = [tags.valueof(name) for name in ("XResolution", "YResolution")]
    sides: list[float] = []
    if None not in per_unit:
        sides = [float(denominator) / numerator for numerator, denominator in per_unit if numerator]
    if len(sides) == 2:
        # ImageJ writes no unit into the tag when its own is none of the tag's. A unit there means
        # that another program has written the file anew and copied ImageJ's words.
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
    """The resolution of a PNG or JPEG."""
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

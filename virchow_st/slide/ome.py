"""Reads the OME-XML of a TIFF: channels and µm per pixel of its images."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

UM_PER_UNIT = {
    "pm": 1e-6, "Å": 1e-4, "å": 1e-4, "nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0,
    "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0, "mm": 1e3, "cm": 1e4, "dm": 1e5,
    "m": 1e6, "thou": 25.4, "mil": 25.4, "in": 25_400.0, "inch": 25_400.0,
}  # fmt: skip
"""Units of length as OME-XML and ImageJ write them, in µm."""
_FLUOROPHORE = ("Fluor", "EmissionWavelength", "ExcitationWavelength")


@dataclass(frozen=True)
class OmeImage:
    """An ``Image`` of the OME-XML.

    Attributes:
        name: the image's name.
        channels: the names of its channels; ``""`` for a channel without a name.
        says_fluorescence: whether a channel's contrast or illumination is fluorescence.
        has_fluorophores: whether a channel lists a fluorophore or wavelengths.
        um_per_px: ``(x, y)`` µm per pixel, or None if the file does not give them in a unit of
            length.
    """

    name: str
    channels: tuple[str, ...]
    says_fluorescence: bool
    has_fluorophores: bool
    um_per_px: tuple[float, float] | None


def ome_images(xml: str) -> list[OmeImage]:
    """The images described by an OME-XML text, in its order; none if it is not valid XML."""
    try:
        root = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError):
        return []
    found = []
    for image in root.iterfind("{*}Image"):
        pixels = image.find("{*}Pixels")
        if pixels is None:
            continue
        channels = pixels.findall("{*}Channel")
        found.append(
            OmeImage(
                name=image.get("Name", ""),
                channels=tuple(channel.get("Name", "") for channel in channels),
                says_fluorescence=any(_fluoresces(channel) for channel in channels),
                has_fluorophores=any(c.get(name) for c in channels for name in _FLUOROPHORE),
                um_per_px=_um_per_px(pixels),
            )
        )
    return found


def _fluoresces(channel: ElementTree.Element) -> bool:
    mode = channel.get("ContrastMethod", "") + channel.get("IlluminationType", "")
    return "fluorescence" in mode.lower()


def _um_per_px(pixels: ElementTree.Element) -> tuple[float, float] | None:
    sides = []
    for axis in "XY":
        unit = UM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        try:
            size = float(pixels.get(f"PhysicalSize{axis}", ""))
        except ValueError:
            return None
        if unit is None:
            return None
        sides.append(size * unit)
    return sides[0], sides[1]

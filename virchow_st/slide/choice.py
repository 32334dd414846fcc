"""What was chosen of an image file: reader, series, plane, colour samples, bits, µm per pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from virchow_st.slide.mpp import MppPlace

ORIENTATIONS = {
    1: "as stored",
    2: "mirrored left to right",
    3: "turned by 180°",
    4: "mirrored top to bottom",
    5: "mirrored along the main diagonal",
    6: "turned by 90° clockwise",
    7: "mirrored along the other diagonal",
    8: "turned by 90° anticlockwise",
}
"""What the Orientation tag of TIFF and EXIF asks a viewer to do with the stored pixels."""


@dataclass(frozen=True)
class ImageChoice:
    """What `virchow_st.slide.choose.open_image` decided about a file.

    Attributes:
        reader: ``"openslide"``, ``"tifffile"`` or ``"opencv"``, or ``"array"`` for an image in
            memory.
        format: the format in words, such as ``"MIRAX"`` or ``"TIFF, tiles"``.
        series: which image of the file, in words; empty where the file holds one.
        plane: which plane of a stack, in words; empty where there is one.
        colour: how the three colours and the transparency were taken, in words; empty for plain
            RGB.
        bits: bits per sample that the pixels use; 8 except in deep images, which are scaled to 8.
        orientation: value of the file's Orientation tag, 1 to 8 (`ORIENTATIONS`).
        mpp_places: what the file says of µm per pixel, the surest first.
        warnings: one line for each thing in the file that a user has to know of.
    """

    reader: str
    format: str
    series: str = ""
    plane: str = ""
    colour: str = ""
    bits: int = 8
    orientation: int = 1
    mpp_places: tuple[MppPlace, ...] = ()
    warnings: tuple[str, ...] = ()

    def describe(self) -> str:
        """The choice in one line, without the file's name and size."""
        parts = [f"{self.format}, read by {self.reader}", self.series, self.plane]
        parts.append(self.colour or "RGB")
        parts.append(f"{self.bits} bit" + (" scaled to 8" if self.bits != 8 else ""))
        return ", ".join(part for part in parts if part)

    def provenance(self) -> dict[str, Any]:
        """What is not the plain case (one image, one plane, 8-bit RGB), for job and manifest."""
        found: dict[str, Any] = {
            name: value for name in ("series", "plane", "colour") if (value := getattr(self, name))
        }
        if self.bits != 8:
            found["bits"] = self.bits
        return found

"""How an image file is read: its reader, series, plane, colour samples, bits and µm per pixel."""

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
"""How a viewer displays the stored pixels, for each value of the Orientation tag (TIFF, EXIF)."""


@dataclass(frozen=True)
class ImageChoice:
    """What `virchow_st.slide.choose.open_image` decided about a file.

    Attributes:
        reader: ``"openslide"``, ``"tifffile"`` or ``"opencv"``, or ``"array"`` for an image in
            memory.
        format: description of the format, such as ``"MIRAX"`` or ``"TIFF in tiles"``.
        series: description of the image chosen from the file; empty if the file holds only one.
        plane: description of the plane chosen from a stack; empty if there is only one.
        colour: description of how colours and transparency are stored; empty for plain RGB.
        bits: bits per sample that the pixels use; images with more than 8 are scaled to 8.
        orientation: value of the file's Orientation tag, 1 to 8 (`ORIENTATIONS`).
        mpp_places: the values of µm per pixel found in the file, the most reliable first.
        warnings: one line per peculiarity of the file that the user should know.
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
        """Describe the choice in one line, without the file's name and size."""
        parts = [f"{self.format}, read by {self.reader}", self.series, self.plane]
        parts.append(self.colour or "RGB")
        parts.append(f"{self.bits} bit" + (" scaled to 8" if self.bits != 8 else ""))
        return ", ".join(part for part in parts if part)

    def provenance(self) -> dict[str, Any]:
        """The parts that differ from the plain case (one image, one plane, 8-bit RGB).

        They are recorded in a store's manifest and compared when a job is resumed.
        """
        found: dict[str, Any] = {
            name: value for name in ("series", "plane", "colour") if (value := getattr(self, name))
        }
        if self.bits != 8:
            found["bits"] = self.bits
        return found

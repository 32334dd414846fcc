"""Reads the header of a PNG or JPEG: its size, orientation and resolution, without the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from virchow_st.slide.space_ranger import reading

_ORIENTATION = 0x0112  # EXIF's tag


@dataclass(frozen=True)
class PictureHeader:
    """The header of a PNG or JPEG.

    Attributes:
        format: ``"PNG"`` or ``"JPEG"``.
        width, height: px.
        orientation: value of EXIF's Orientation tag, 1 to 8.
        dpi: pixels per inch across and down, or None if the file does not give them.
    """

    format: str
    width: int
    height: int
    orientation: int
    dpi: tuple[float, float] | None


def read_picture_header(path: Path) -> PictureHeader:
    """Read the header only.

    Pillow's file classes do that for images of any size, whereas ``PIL.Image.open`` refuses large
    ones.

    Raises:
        SlideError: the file is neither PNG nor JPEG, or damaged.
    """
    with reading(path, "a PNG or JPEG image"), path.open("rb") as file:
        is_png = file.read(4) == b"\x89PNG"
        file.seek(0)
        try:
            picture = PngImageFile(file) if is_png else JpegImageFile(file)
        except SyntaxError as e:  # Pillow raises it for other formats
            raise ValueError(str(e)) from None
        orientation, dpi = picture.getexif().get(_ORIENTATION, 1), picture.info.get("dpi")
        if not picture.width or not picture.height:
            raise ValueError("it has no pixels")
        return PictureHeader(
            "PNG" if is_png else "JPEG",
            picture.width,
            picture.height,
            orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1,
            (float(dpi[0]), float(dpi[1])) if dpi else None,
        )

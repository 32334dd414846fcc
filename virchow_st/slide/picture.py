"""Reads a PNG or JPEG as a slide image, by decoding all of it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from virchow_st.errors import SlideError
from virchow_st.slide.backends import ArrayPixels, Pixels, Samples
from virchow_st.slide.choice import ImageChoice
from virchow_st.slide.deep import alpha_says_nothing, used_bits
from virchow_st.slide.foreign import CONVERT
from virchow_st.slide.mpp import dpi_place
from virchow_st.slide.picture_header import PictureHeader, read_picture_header
from virchow_st.slide.space_ranger import reading

_LARGEST_BYTES = 256 << 20
_LARGEST_PX = 1 << 30  # OpenCV's own bound


def read_picture(path: Path) -> tuple[Pixels, ImageChoice]:
    """Decode a PNG or JPEG, 8 or 16 bit, RGB or RGBA.

    Returns:
        The pixels in memory, and how they are read.

    Raises:
        SlideError: the file is too large to be decoded as a whole, damaged, or grey.
    """
    header = read_picture_header(path)
    if (n_bytes := path.stat().st_size) > _LARGEST_BYTES:
        raise _too_large(path, f"up to {_LARGEST_BYTES >> 20} MiB", f"{n_bytes >> 20} MiB")
    if header.width * header.height > _LARGEST_PX:
        found = f"{header.width}×{header.height} px"
        raise _too_large(path, f"up to {_LARGEST_PX // 10**6:,} million px", found)
    pixels = _decode(path, header)
    samples, colour = Samples(), ""
    warnings: tuple[str, ...] = ()
    if pixels.shape[2] == 4:
        if (reason := alpha_says_nothing(pixels[..., 3])) is None:
            samples, colour = Samples(alpha=3), "RGB and transparency"
        else:
            colour, warnings = "RGB, transparency left out", (reason,)
    bits = 8
    if pixels.dtype != np.uint8:
        bits = used_bits(int(pixels[..., :3].max()))
        samples = Samples(alpha=samples.alpha, largest=(1 << bits) - 1)
    choice = ImageChoice(
        "opencv", header.format, colour=colour, bits=bits, orientation=header.orientation,
        mpp_places=tuple(dpi_place(header.dpi)), warnings=warnings,
    )  # fmt: skip
    return ArrayPixels("opencv", pixels, samples), choice


def _decode(path: Path, header: PictureHeader) -> np.ndarray:
    """(H, W, 3 or 4) RGB or RGBA; refuses a truncated file, which OpenCV silently fills up."""
    content = np.fromfile(path, np.uint8)
    with reading(path, "a PNG or JPEG image"):
        end = b"IEND" if header.format == "PNG" else b"\xff\xd9"
        if end not in content[-64:].tobytes():
            raise ValueError("its end is missing")
        try:
            pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
        except cv2.error as e:
            raise ValueError(str(e)) from None
        if pixels is None:
            raise ValueError("OpenCV cannot decode it")
    n_samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    if n_samples < 3 or pixels.dtype not in (np.uint8, np.uint16):
        raise SlideError(
            f"{path}: expected an H&E image in RGB; got {n_samples} channels of {pixels.dtype}; "
            "give the microscope image, not cytassist_image.tiff or a fluorescence scan"
        )
    code = cv2.COLOR_BGR2RGB if n_samples == 3 else cv2.COLOR_BGRA2RGBA
    return cv2.cvtColor(pixels, code)


def _too_large(path: Path, expected: str, found: str) -> SlideError:
    return SlideError(
        f"{path}: expected a PNG or JPEG of {expected}, which is decoded whole; got {found}; "
        f"convert it: {CONVERT}"
    )

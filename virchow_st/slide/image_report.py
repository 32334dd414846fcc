"""The report of ``vst inspect IMAGE``: how the image would be read, and whether it can be H&E.

Only an overview and a few windows are read; nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from virchow_st.errors import SlideError
from virchow_st.slide.choice import ORIENTATIONS
from virchow_st.slide.image import SlideImage
from virchow_st.slide.mpp import describe_mpp, mpp_warning
from virchow_st.slide.sample import spread
from virchow_st.slide.stain_check import StainCheck, check_stain
from virchow_st.slide.tissue import find_tissue
from virchow_st.types import PATCH_UM, UInt8Array

_OVERVIEW_UM = 8.0
_LARGEST_OVERVIEW_PX = 128 << 20  # if an overview needs more, windows cover the whole image instead
_WINDOWS_IN_TISSUE = 24
_WINDOWS_PER_SIDE = 8
_USUAL_MPP = 0.5  # assumed for the size of the windows if the file does not tell µm per pixel


@dataclass(frozen=True)
class ImageReport:
    """What was found in an image.

    Attributes:
        rows: label → text, for a table.
        warnings: one line each.
        stain: whether the image can be H&E.
    """

    rows: dict[str, str]
    warnings: tuple[str, ...]
    stain: StainCheck


def report_on(image: SlideImage) -> ImageReport:
    """Describe an opened image.

    Raises:
        SlideError: the file is damaged.
    """
    choice = image.choice
    mpp = next((place.mpp for place in choice.mpp_places if place.mpp), None)
    warnings = list(choice.warnings)
    if (disagreement := mpp_warning(choice.mpp_places)) is not None:
        warnings.append(disagreement)
    stain = check_stain(_windows(image, mpp or _USUAL_MPP))
    rows = {
        "size": f"{image.width}×{image.height} px",
        "read as": choice.describe(),
        "µm per pixel": f"{mpp:.4g} {describe_mpp(choice.mpp_places)}"
        if mpp
        else "not in the file",
        "levels": ", ".join(f"1/{factor}" for factor in image.level_factors()),
        "orientation": "as stored"
        if choice.orientation == 1
        else f"its tag asks for it {ORIENTATIONS[choice.orientation]}; prediction reads it as "
        "stored, extraction measures which way the counts lie on it",
        "stain": stain.describe(),
    }
    return ImageReport(rows, tuple(warnings), stain)


def _windows(image: SlideImage, mpp: float) -> list[UInt8Array]:
    """Windows of 256 µm at about 1 µm/px, in tissue if an overview can be read quickly."""
    side = max(1, min(round(PATCH_UM / mpp), image.width, image.height))
    across, down = max(1, image.width // side), max(1, image.height // side)
    places = [(x * side, y * side) for y in range(down) for x in range(across)]
    places = [places[i] for i in spread(len(places), _WINDOWS_PER_SIDE**2)]
    factor = max(1.0, _OVERVIEW_UM / mpp)
    step = image.level_factor(factor)
    if image.width * image.height // step**2 <= _LARGEST_OVERVIEW_PX:
        overview, _, scale = image.read_region(
            0, 0, image.width, image.height, step * int(factor / step)
        )
        try:
            row, col = np.nonzero(find_tissue(overview, scale * mpp).mask)
        except SlideError:  # no tissue: keep the windows over the whole image
            pass
        else:
            picked = spread(len(row), _WINDOWS_IN_TISSUE)
            places = [
                (int(col[i] * scale) - side // 2, int(row[i] * scale) - side // 2) for i in picked
            ]
    downsample = max(1.0, 1.0 / mpp)
    # Corners are rounded to the level's pixels, so that a reduced level can be read.
    step = image.level_factor(downsample)
    return [
        image.read_region(x // step * step, y // step * step, side, side, downsample)[0]
        for x, y in places
    ]

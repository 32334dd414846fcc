"""Can a picture be H&E-stained tissue at all? Asked before an encoder runs for hours.

Haematoxylin absorbs red and green and lets blue pass, eosin absorbs green most of all. So stained
tissue absorbs blue less than green, and the ratio of red to green differs from nuclei to stroma.
A white slide, a slide of one colour, one stain alone, a grey picture, an inverted or a fluorescence
scan each break one of these rules. The limits keep a wide margin to real sections: measured on
public breast, colon and mouse brain sections, blue over green was 0.24 to 0.63 (median of the
tissue; 1.2 in an inverted one), and red over green spread by 0.23 to 0.61 between its 5th and
95th percentiles in the darker half (single patches of 128 µm: 0.13 and more; a picture of one
stain after JPEG compression: 0.10 and less).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from virchow_st.errors import SlideError
from virchow_st.slide.geometry import Homography
from virchow_st.slide.image import SlideImage
from virchow_st.slide.patches import PatchTable, render_patch
from virchow_st.slide.tissue import white_point
from virchow_st.types import PATCH_BINS, STORED_IMAGE_PX, Array, BoolArray, UInt8Array

_LOOKED_AT = 24  # patches
_STAINED_OD = 0.1  # mean optical density over the colours above which a pixel is stained
_LEAST_STAINED = 0.005  # share of the pixels looked at
_NOISE_PX = 1.0  # sigma of the blur that takes out the camera's noise, at 1 µm/px
_LEAST_CONTRAST = 0.03  # optical density, 5th to 95th percentile of the pixels' contrast
_SURROUNDINGS_PX = 8.0  # sigma of the surroundings that contrast is against
_LEAST_HUES = 0.11  # 5th to 95th percentile of the ratio of red to green absorption
_MOST_BLUE = 1.1  # median of the ratio of blue to green absorption; saffron brings it near 1
_BLACK_OD = 1.0
_MOST_BLACK = 0.25
_LARGEST_OD = 2.0  # darker is ink, a fold, or a background that was never lit


@dataclass(frozen=True)
class StainCheck:
    """What the pixels of a slide show.

    Attributes:
        stained: share of the pixels that are stained.
        fault: why they can be no H&E, in words; empty where they can.
    """

    stained: float
    fault: str

    def raise_for(self, path: object) -> None:
        """Raise `SlideError` for a slide that can be no H&E."""
        if self.fault:
            raise SlideError(
                f"{path}: expected tissue stained with H&E; {self.fault}; give the H&E image, and "
                "look at it in a viewer first"
            )

    def describe(self) -> str:
        """The finding in words."""
        return self.fault or f"can be H&E; {self.stained:.0%} of what was looked at is stained"


def check_patches(
    image: SlideImage,
    homography: Homography,
    patches: PatchTable,
    tissue_of: Callable[[int, int], BoolArray],
) -> StainCheck:
    """Judge a slide by some of its patches, spread evenly over all.

    Args:
        image, homography, patches: the slide, and where the patches lie on it.
        tissue_of: from a patch's first row and column to its (128, 128) tissue mask.
    """
    images, masks = [], []
    per_bin = STORED_IMAGE_PX // PATCH_BINS
    for index in spread(len(patches), _LOOKED_AT):
        row0, col0 = int(patches.row0[index]), int(patches.col0[index])
        ((rgb, on_image),) = render_patch(image, homography, row0, col0, (STORED_IMAGE_PX,))
        tissue = tissue_of(row0, col0).repeat(per_bin, axis=0).repeat(per_bin, axis=1)
        images.append(rgb)
        masks.append(tissue & on_image)
    return check_stain(images, masks)


def spread(n: int, most: int) -> list[int]:
    """Up to ``most`` of ``n`` indices, evenly spread, the first and the last among them."""
    return [int(i) for i in np.unique(np.linspace(0, n - 1, min(n, most)).round())]


def check_stain(
    images: Sequence[UInt8Array], masks: Sequence[BoolArray] | None = None
) -> StainCheck:
    """Judge some images of a slide together.

    Args:
        images: (H, W, 3) uint8 RGB each, at about 1 µm/px, where tissue is.
        masks: (H, W) bool each, True for the pixels that count; None for all.
    """
    white = np.maximum(white_point(np.concatenate([i.reshape(1, -1, 3) for i in images], 1)), 1.0)
    table = np.log10((white[:, None] + 1) / (np.arange(256) + 1.0)).clip(0, _LARGEST_OD)
    table = table.astype(np.float32)
    densities, contrasts, n_seen, n_black = [], [], 0, 0
    for index, image in enumerate(images):
        density = np.stack([table[c][image[..., c]] for c in range(3)], axis=2)
        density = cv2.GaussianBlur(density, (0, 0), _NOISE_PX)
        contrast = density - cv2.GaussianBlur(density, (0, 0), _SURROUNDINGS_PX)
        mean = density.mean(axis=2)
        seen = np.ones(mean.shape, bool) if masks is None else masks[index]
        n_seen += int(seen.sum())
        n_black += int((seen & (mean > _BLACK_OD)).sum())
        stained = seen & (mean > _STAINED_OD)
        densities.append(density[stained])
        contrasts.append(contrast[stained])
    return _judge(np.concatenate(densities), np.concatenate(contrasts), n_seen, n_black)


def _judge(density: Array, contrast: Array, n_seen: int, n_black: int) -> StainCheck:
    """From optical densities and their local contrast, (N, 3) each, of the stained pixels."""
    stained = len(density) / max(n_seen, 1)
    if stained < _LEAST_STAINED:
        return StainCheck(stained, "it is white, or all of one colour")
    if n_black > _MOST_BLACK * n_seen:
        return StainCheck(stained, "it is mostly black, as fluorescence and inverted scans are")
    low, high = np.percentile(contrast, (5, 95), axis=0)
    if (high - low).max() < _LEAST_CONTRAST:
        return StainCheck(stained, "it is of one colour: no nuclei stand out")
    green = np.maximum(density[:, 1], 0.02)
    blue = float(np.median(density[:, 2] / green))
    if blue > _MOST_BLUE:
        return StainCheck(
            stained,
            f"it absorbs more blue than green (ratio {blue:.2f}; H&E 0.2 to 0.8), as inverted and "
            "fluorescence pictures and other stains do",
        )
    depth = density.mean(axis=1)
    dark = depth >= np.median(depth)  # where noise moves the hue least
    few, many = np.percentile(density[dark, 0] / green[dark], (5, 95))
    if many - few < _LEAST_HUES:
        return StainCheck(stained, "it is of one hue: haematoxylin or eosin is missing")
    return StainCheck(stained, "")

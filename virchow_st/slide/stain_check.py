"""Checks that an image can be H&E-stained tissue, before an encoder runs on it for hours.

Haematoxylin absorbs red and green and transmits blue; eosin absorbs mainly green. Stained tissue
therefore absorbs less blue than green, and the ratio of red to green absorption differs between
nuclei and stroma. A white slide, a slide of one colour or one stain, a grey image, an inverted
image and a fluorescence scan each violate one of these rules.

The limits leave a wide margin to real sections. On public breast, colon and mouse brain sections,
the ratio of blue to green absorption was 0.24 to 0.63 (median over tissue; 1.2 in an inverted
image). The ratio of red to green absorption spanned 0.23 to 0.61 between its 5th and 95th
percentiles in the darker half of the pixels (single patches of 128 µm: at least 0.13; an image of
one stain after JPEG compression: at most 0.10).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from virchow_st.errors import SlideError
from virchow_st.slide.geometry import Homography
from virchow_st.slide.image import SlideImage
from virchow_st.slide.patches import PatchTable
from virchow_st.slide.sample import sample_patches
from virchow_st.slide.tissue import white_point
from virchow_st.types import Array, BoolArray, UInt8Array

_LOOKED_AT = 24  # number of patches that are examined
_STAINED_OD = 0.1  # a pixel is stained if its mean optical density over the colours is higher
_LEAST_STAINED = 0.005  # smallest share of stained pixels
_NOISE_PX = 1.0  # sigma of the blur against camera noise, at 1 µm/px
_LEAST_CONTRAST = 0.03  # smallest 5th to 95th percentile range of local contrast, optical density
_SURROUNDINGS_PX = 8.0  # sigma of the blur that local contrast is measured against
_LEAST_HUES = 0.11  # smallest 5th to 95th percentile range of red over green absorption
_MOST_BLUE = 1.1  # largest median of blue over green absorption; saffron stain comes close to 1
_BLACK_OD = 1.0  # a pixel is black if its mean optical density is higher
_MOST_BLACK = 0.25  # largest share of black pixels
_LARGEST_OD = 2.0  # values beyond are clipped: ink, a fold, or unlit background


@dataclass(frozen=True)
class StainCheck:
    """The result of checking a slide's pixels.

    Attributes:
        stained: share of the examined pixels that are stained.
        fault: the reason why they cannot be H&E; empty if they can be.
    """

    stained: float
    fault: str

    def raise_for(self, path: object) -> None:
        """Raise `SlideError` if the slide cannot be H&E."""
        if self.fault:
            raise SlideError(
                f"{path}: expected tissue stained with H&E; {self.fault}; give the H&E image, and "
                "check it in a viewer first"
            )

    def describe(self) -> str:
        """Describe the result in one line."""
        return self.fault or f"can be H&E; {self.stained:.0%} of what was looked at is stained"


def check_patches(
    image: SlideImage,
    homography: Homography,
    patches: PatchTable,
    tissue_of: Callable[[int, int], BoolArray],
) -> StainCheck:
    """Check a slide by up to 24 patches, evenly spaced among all.

    Args:
        image: the slide image.
        homography: from bins to its full-resolution px.
        patches: the slide's patches.
        tissue_of: function from a patch's first row and column to its (128, 128) tissue mask.

    Raises:
        SlideError: the image file is damaged.
    """
    return check_stain(*sample_patches(image, homography, patches, tissue_of, _LOOKED_AT))


def check_stain(
    images: Sequence[UInt8Array], masks: Sequence[BoolArray] | None = None
) -> StainCheck:
    """Check images of one slide together.

    Args:
        images: images of tissue, (H, W, 3) uint8 RGB each, at about 1 µm/px.
        masks: (H, W) bool each, True for the pixels to examine; None for all pixels.
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
    """Apply the rules to optical densities and local contrast, (N, 3) each, of stained pixels."""
    stained = len(density) / max(n_seen, 1)
    if stained < _LEAST_STAINED:
        return StainCheck(stained, "it is white, or all of one colour")
    if n_black > _MOST_BLACK * n_seen:
        return StainCheck(stained, "it is mostly black, like fluorescence and inverted scans")
    low, high = np.percentile(contrast, (5, 95), axis=0)
    if (high - low).max() < _LEAST_CONTRAST:
        return StainCheck(stained, "it is of one colour: no nuclei stand out")
    green = np.maximum(density[:, 1], 0.02)
    blue = float(np.median(density[:, 2] / green))
    if blue > _MOST_BLUE:
        return StainCheck(
            stained,
            f"it absorbs more blue than green (ratio {blue:.2f}; H&E 0.2 to 0.8), as inverted and "
            "fluorescence images and other stains do",
        )
    depth = density.mean(axis=1)
    dark = depth >= np.median(depth)  # the darker half, where noise affects the hue least
    few, many = np.percentile(density[dark, 0] / green[dark], (5, 95))
    if many - few < _LEAST_HUES:
        return StainCheck(stained, "it is of one hue: haematoxylin or eosin is missing")
    return StainCheck(stained, "")

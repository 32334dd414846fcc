"""Images of a few patches spread over a slide, with their tissue."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from virchow_st.slide.geometry import Homography
from virchow_st.slide.image import SlideImage
from virchow_st.slide.patches import PatchTable, render_patch
from virchow_st.types import PATCH_BINS, STORED_IMAGE_PX, BoolArray, UInt8Array


def spread(n: int, most: int) -> list[int]:
    """Up to ``most`` of ``n`` indices, evenly spaced, including the first and the last.

    Example:
        >>> spread(10, 4)
        [0, 3, 6, 9]
    """
    return [int(i) for i in np.unique(np.linspace(0, n - 1, min(n, most)).round())]


def sample_patches(
    image: SlideImage,
    homography: Homography,
    patches: PatchTable,
    tissue_of: Callable[[int, int], BoolArray],
    most: int,
) -> tuple[list[UInt8Array], list[BoolArray]]:
    """Render up to ``most`` patches, evenly spaced among all.

    Args:
        image: the slide.
        homography: from bins to its full-resolution px.
        patches: its patches.
        tissue_of: gives the (128, 128) tissue mask of the patch at a row and column of bins.
        most: number of patches.

    Returns:
        Images (256, 256, 3) uint8 RGB, and for each (256, 256) bool, True for tissue on the image.

    Raises:
        SlideError: the image file is damaged.
    """
    images, masks = [], []
    per_bin = STORED_IMAGE_PX // PATCH_BINS
    for i in spread(len(patches), most):
        row0, col0 = int(patches.row0[i]), int(patches.col0[i])
        ((rgb, on_image),) = render_patch(image, homography, row0, col0, (STORED_IMAGE_PX,))
        images.append(rgb)
        masks.append(on_image & tissue_of(row0, col0).repeat(per_bin, 0).repeat(per_bin, 1))
    return images, masks

"""Compares the tissue's outline on the image with the bins that Space Ranger marks as tissue."""

from __future__ import annotations

import numpy as np

from virchow_st.errors import SlideError
from virchow_st.slide.image import SlideImage
from virchow_st.slide.tissue import find_tissue
from virchow_st.slide.visium_hd import VisiumHDSlide

_OVERVIEW_UM = 8.0
_STEP_BINS = 8
_LEAST_OF_EACH = 0.02  # share of tissue and of glass; a grid full of tissue has no outline


def outline_agreement(slide: VisiumHDSlide, image: SlideImage) -> float | None:
    """Matthews' correlation of tissue found on the image with ``in_tissue``, over every 8th bin.

    Args:
        slide: supplies the bins and their homography.
        image: it is read as a whole, at about 8 µm per pixel.

    Returns:
        1 for the same outline, 0 for unrelated ones; None if tissue or glass covers less than 2 %
        of the bins, or if the image shows no tissue at all.
    """
    factor = max(1.0, _OVERVIEW_UM / slide.mpp)
    step = image.level_factor(factor)
    overview, _, scale = image.read_region(
        0, 0, image.width, image.height, step * int(factor / step)
    )
    try:
        seen = find_tissue(overview, scale * slide.mpp).mask
    except SlideError:
        return None
    rows, cols = (np.arange(0, n, _STEP_BINS) for n in slide.grid_shape)
    col, row = np.meshgrid(cols, rows)
    x, y = (np.floor(px / scale).astype(int) for px in slide.homography.to_px(col, row))
    on = (x >= 0) & (x < seen.shape[1]) & (y >= 0) & (y < seen.shape[0])
    stained = np.zeros(on.shape, bool)
    stained[on] = seen[y[on], x[on]]
    listed = slide.tissue_mask[row, col]
    if min(m.mean() for m in (stained, ~stained, listed, ~listed)) < _LEAST_OF_EACH:
        return None
    return float(np.corrcoef(stained.ravel(), listed.ravel())[0, 1])

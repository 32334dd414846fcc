"""Patches over the tissue of a slide, with or without overlap, and the window that blends them."""

from __future__ import annotations

import numpy as np

from virchow_st.errors import SlideError
from virchow_st.slide.patches import PatchTable
from virchow_st.types import (
    BIN_UM,
    BLOCK_BINS,
    CELL_BINS,
    PATCH_BINS,
    BoolArray,
    Float32Array,
    Int64Array,
)


def lay_over(tissue: BoolArray, min_tissue: float, overlap_bins: int = 0) -> PatchTable:
    """Lay patches from bin (0, 0) until they cover the grid; the last may extend beyond it.

    Strides are whole cells of 8 µm, so that no cell is partly covered.

    Args:
        tissue: (R, C) bool, cells of 8 µm.
        min_tissue: smallest share of tissue in a kept patch; a patch without tissue is never kept.
        overlap_bins: bins that neighbours share, a multiple of 4, at most half a patch.

    Returns:
        The kept patches, block by block (`BLOCK_BINS`) in row-major order, which keeps the number
        of unfinished blocks small.

    Raises:
        SlideError: no patch has enough tissue.
    """
    if overlap_bins % CELL_BINS or not 0 <= overlap_bins <= PATCH_BINS // 2:
        raise ValueError(f"expected a multiple of {CELL_BINS} up to half a patch")
    starts = [_starts(cells * CELL_BINS, PATCH_BINS - overlap_bins) for cells in tissue.shape]
    # Cumulative sums of tissue cells: the cells of a patch follow from four of them.
    reach = [(s[-1] + PATCH_BINS) // CELL_BINS for s in starts]
    area = np.zeros((reach[0] + 1, reach[1] + 1), np.int64)
    area[1 : tissue.shape[0] + 1, 1 : tissue.shape[1] + 1] = tissue
    area = area.cumsum(axis=0).cumsum(axis=1)
    top, left = (s // CELL_BINS for s in starts)
    bottom, right = (s + PATCH_BINS // CELL_BINS for s in (top, left))
    inside = area[np.ix_(bottom, right)] - area[np.ix_(top, right)]
    inside -= area[np.ix_(bottom, left)] - area[np.ix_(top, left)]
    fraction = inside / (PATCH_BINS // CELL_BINS) ** 2
    row, col = np.nonzero((fraction >= min_tissue) & (fraction > 0))
    if len(row) == 0:
        raise SlideError(
            f"tissue: expected a patch of {PATCH_BINS * BIN_UM} µm with at least {min_tissue:.0%} "
            f"tissue; the best has {fraction.max():.0%}; lower --min-tissue"
        )
    row0, col0 = starts[0][row], starts[1][col]
    order = np.lexsort((col0, row0, col0 // BLOCK_BINS, row0 // BLOCK_BINS))
    return PatchTable(
        row0=row0[order].astype(np.int32),
        col0=col0[order].astype(np.int32),
        tissue_fraction=fraction[row, col][order].astype(np.float32),
    )


def _starts(n_bins: int, stride: int) -> Int64Array:
    """First bins of the patches that cover an axis of ``n_bins`` bins."""
    return stride * np.arange(1 + max(0, -(-(n_bins - PATCH_BINS) // stride)))


def covered(tissue: BoolArray, patches: PatchTable) -> float:
    """Share of the tissue cells that lie in a patch."""
    left = tissue.copy()
    side = PATCH_BINS // CELL_BINS
    for row0, col0 in zip(patches.row0 // CELL_BINS, patches.col0 // CELL_BINS, strict=True):
        left[row0 : row0 + side, col0 : col0 + side] = False
    return 1 - np.count_nonzero(left) / np.count_nonzero(tissue)


def window(overlap_bins: int) -> Float32Array:
    """Weight of a patch's bins where patches overlap, (128, 128).

    Along each axis a raised cosine over the overlap and 1 elsewhere; the weights of neighbours sum
    to 1.

    >>> weights = window(overlap_bins=4)[64]  # along a row in the middle of a patch
    >>> print(weights[:6].round(2), weights[:4] + weights[-4:])
    [0.04 0.31 0.69 0.96 1.   1.  ] [1. 1. 1. 1.]
    """
    ramp = np.sin(np.pi / 2 * (np.arange(overlap_bins) + 0.5) / max(overlap_bins, 1)) ** 2
    side = np.ones(PATCH_BINS)
    side[:overlap_bins] = ramp
    side[PATCH_BINS - overlap_bins :] *= ramp[::-1]
    return np.outer(side, side).astype(np.float32)

"""The patch lattice, the selection of patches with tissue, and the image of a patch.

A patch is 128×128 bins on the bin grid, so counts are never resampled. Instead, the image is warped
to the grid and comes out in bin orientation, however the slide lay in the scanner.
docs/coordinates.md describes the coordinate frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from virchow_st.errors import SlideError
from virchow_st.slide.geometry import Homography
from virchow_st.slide.image import SlideImage
from virchow_st.types import PATCH_BINS, Array, BoolArray, Float32Array, Float64Array, UInt8Array

_OVERSAMPLE = 2
_MARGIN_PX = 2  # bilinear sampling needs one pixel beyond the patch
_WHITE = (255, 255, 255)


@dataclass(frozen=True, eq=False)
class PatchTable:
    """Patches in row-major order.

    Attributes:
        row0, col0: (P,) int32 array_row and array_col of each patch's first bin.
        tissue_fraction: (P,) float32 share of each patch's bins that are tissue.
    """

    row0: Array
    col0: Array
    tissue_fraction: Float32Array

    def __len__(self) -> int:
        return len(self.row0)

    @property
    def offset(self) -> tuple[int, int]:
        """Row and column, 0 to 127, where the lattice starts; patches follow in steps of 128."""
        return int(self.row0[0]) % PATCH_BINS, int(self.col0[0]) % PATCH_BINS


def lay_patches(tissue_mask: BoolArray, min_tissue: float, lattice: str = "origin") -> PatchTable:
    """Lay whole patches on the bin grid and keep those with enough tissue.

    Args:
        tissue_mask: (rows, cols) bool.
        min_tissue: smallest share of tissue bins in a kept patch; patches without any tissue are
            never kept.
        lattice: where the lattice starts: ``"origin"`` for bin (0, 0); ``"best"`` for the bin, of
            the first 128×128, with which the kept patches hold the most tissue bins (of several,
            the one with the smallest row, then column).

    Raises:
        SlideError: the grid holds no whole patch, or no patch has enough tissue.

    Example:
        >>> mask = np.zeros((300, 300), bool)
        >>> mask[:150, :100] = True
        >>> table = lay_patches(mask, min_tissue=0.25)
        >>> list(zip(table.row0.tolist(), table.col0.tolist()))
        [(0, 0)]
    """
    if min(tissue_mask.shape) < PATCH_BINS:
        height, width = tissue_mask.shape
        raise SlideError(
            f"bin grid: expected at least {PATCH_BINS}×{PATCH_BINS} bins; got {height}×{width}; "
            "give a whole capture area"
        )
    if lattice == "best":
        first_row, first_col = best_offset(tissue_mask, min_tissue)
    else:
        first_row, first_col = 0, 0
    rows, cols = (
        (n - o) // PATCH_BINS
        for n, o in zip(tissue_mask.shape, (first_row, first_col), strict=True)
    )
    whole = tissue_mask[first_row:, first_col:][: rows * PATCH_BINS, : cols * PATCH_BINS]
    fraction = whole.reshape(rows, PATCH_BINS, cols, PATCH_BINS).mean(axis=(1, 3))
    row, col = np.nonzero((fraction >= min_tissue) & (fraction > 0))
    if len(row) == 0:
        raise SlideError(
            f"tissue: expected a patch with at least {min_tissue:.0%} tissue; the best has "
            f"{fraction.max():.0%}; lower --min-tissue or check the tissue detection"
        )
    return PatchTable(
        row0=(first_row + row * PATCH_BINS).astype(np.int32),
        col0=(first_col + col * PATCH_BINS).astype(np.int32),
        tissue_fraction=fraction[row, col].astype(np.float32),
    )


def best_offset(tissue_mask: BoolArray, min_tissue: float) -> tuple[int, int]:
    """Row and column, 0 to 127, of the lattice start whose kept patches hold the most tissue bins.

    The search is exhaustive. A summed-area table (Crow 1984) gives the number of tissue bins of
    the patch at every position; for each of the 128×128 starts, the numbers of the patches that
    would be kept are added up. It takes 12 bytes per bin of the grid.

    Args:
        tissue_mask: (rows, cols) bool, each side at least 128.
        min_tissue: smallest share of tissue bins in a kept patch.

    Returns:
        The best start; of several, the one with the smallest row, then the smallest column.

    Example:
        >>> mask = np.zeros((300, 300), bool)
        >>> mask[10:138, 20:148] = True
        >>> best_offset(mask, min_tissue=0.9)
        (10, 20)
    """
    # If sums overflow int32 they wrap round; their differences, at most 16,384, stay correct.
    area = np.zeros(tuple(n + 1 for n in tissue_mask.shape), np.int32)
    np.cumsum(tissue_mask, axis=0, dtype=np.int32, out=area[1:, 1:])
    np.cumsum(area, axis=1, dtype=np.int32, out=area)
    rows = area[PATCH_BINS:] - area[:-PATCH_BINS]
    in_patch = rows[:, PATCH_BINS:] - rows[:, :-PATCH_BINS]  # of the patch that starts at a bin
    in_patch[in_patch < min_tissue * PATCH_BINS**2] = 0
    covered = np.zeros((PATCH_BINS, PATCH_BINS), np.int64)
    for row in range(0, in_patch.shape[0], PATCH_BINS):
        for col in range(0, in_patch.shape[1], PATCH_BINS):
            patches = in_patch[row : row + PATCH_BINS, col : col + PATCH_BINS]
            covered[: patches.shape[0], : patches.shape[1]] += patches
    first = int(covered.argmax())
    return first // PATCH_BINS, first % PATCH_BINS


def leftover_tissue_bins(tissue_mask: BoolArray, table: PatchTable) -> int:
    """Number of tissue bins in no patch of the table: at the border, or where tissue is sparse."""
    left = tissue_mask.copy()
    for row0, col0 in zip(table.row0, table.col0, strict=True):
        left[row0 : row0 + PATCH_BINS, col0 : col0 + PATCH_BINS] = False
    return int(np.count_nonzero(left))


def render_patch(
    image: SlideImage, homography: Homography, row0: int, col0: int, sizes: Sequence[int]
) -> list[tuple[UInt8Array, BoolArray]]:
    """Warp the slide image to a patch, at several sizes, reading the image once.

    The region is read at about the resolution of the finest target, sampled bilinearly at twice
    the target's resolution and averaged over 2×2 samples, which avoids aliasing.

    Args:
        image: the slide image.
        homography: from bins to the image's full-resolution px.
        row0: array_row of the patch's first bin.
        col0: array_col of the patch's first bin.
        sizes: sides of the target images, px.

    Returns:
        For each size, (size, size, 3) uint8 RGB with rows along array_row and columns along
        array_col, white off the slide image; and (size, size) bool, True for pixels on it.

    Raises:
        SlideError: the image file is damaged.
    """
    corners = homography.patch_corners_px(row0, col0)
    side_px = np.sqrt(_area(corners))
    downsample = max(1.0, float(side_px) / max(sizes))
    step = image.level_factor(downsample)
    margin = _MARGIN_PX * int(downsample)
    low = np.floor((corners.min(axis=0) - margin) / step).astype(int) * step
    high = np.ceil(corners.max(axis=0) + margin).astype(int)
    x0, y0 = int(low[0]), int(low[1])
    region, on_image, scale = image.read_region(
        x0, y0, int(high[0]) - x0, int(high[1]) - y0, downsample
    )
    rendered = []
    for size in sizes:
        fine = size * _OVERSAMPLE
        to_region = homography.patch_affine(row0, col0, fine)
        to_region[:, 2] -= x0, y0
        to_region /= scale
        rgb = _warp(region, to_region, fine, _WHITE)
        rgb = cv2.resize(rgb, (size, size), interpolation=cv2.INTER_AREA)
        if on_image.all():
            valid = np.ones((size, size), bool)
        else:
            share = _warp(on_image.astype(np.uint8) * 255, to_region, fine, (0,))
            valid = _all_in_blocks(share == 255, _OVERSAMPLE)
        rendered.append((rgb, valid))
    return rendered


def bin_validity(valid: BoolArray) -> BoolArray:
    """Which bins of a patch lie wholly on the slide image.

    Args:
        valid: (S, S) bool from `render_patch`, with S a multiple of 128.

    Returns:
        (128, 128) bool, True for bins of which all pixels are on the image.

    Raises:
        ValueError: another shape.

    Example:
        >>> valid = np.ones((256, 256), bool)
        >>> valid[0, 0] = False
        >>> int(bin_validity(valid).sum()) == 128 * 128 - 1
        True
    """
    per_bin, rest = divmod(valid.shape[0], PATCH_BINS)
    if valid.shape[0] != valid.shape[1] or per_bin < 1 or rest:
        raise ValueError(f"expected sides that are a multiple of {PATCH_BINS}; got {valid.shape}")
    return _all_in_blocks(valid, per_bin)


def _warp(
    pixels: Array, target_to_source: Float64Array, size: int, border: tuple[int, ...]
) -> Array:
    """Sample at (size, size) points; the (2, 3) affine relates corner-based coordinates."""
    # OpenCV has pixel centres at integers, corner-based frames at ½: p_cv = A (q_cv + ½) − ½.
    affine = target_to_source.copy()
    affine[:, 2] += affine[:, :2].sum(axis=1) * 0.5 - 0.5
    return cv2.warpAffine(
        pixels,
        affine,
        (size, size),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=border,
    )


def _all_in_blocks(mask: BoolArray, side: int) -> BoolArray:
    """(S/side, S/side) bool: True where a whole block of an (S, S) mask is True."""
    n = mask.shape[0] // side
    return np.asarray(mask.reshape(n, side, n, side).all(axis=(1, 3)), bool)


def _area(corners: Float64Array) -> float:
    """Area of a quadrilateral (shoelace formula)."""
    x, y = corners.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)

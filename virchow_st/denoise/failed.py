"""Tissue bins whose counts failed: dead rows and columns, and what the user marks.

A row or column of the array is dead if it has no UMI in any of its tissue bins although its
neighbours have so many that chance is out of the question. Such bins have no counts rather than
counts of 0; they are left out of the likelihood and are filled from what surrounds them.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.types import Array, BoolArray, Float64Array

SIGNIFICANCE = 1e-3
"""Probability that any row or column of a slide is taken for dead by chance."""
_NEIGHBOURS = 4  # rows with counts on either side that a row is compared with
_LARGEST_SHARE = 0.5


def dead_lines(umis: Array, tissue: BoolArray) -> tuple[BoolArray, BoolArray]:
    """Rows and columns without UMIs where the nearest ones with counts make that impossible.

    With the mean UMIs per tissue bin of the four nearest rows with counts on either side, the
    row's UMIs would be 0 with probability exp(−expected). It is dead if that is below
    `SIGNIFICANCE` over the number of rows and columns that have tissue (Bonferroni).

    Args:
        umis: (R, C) UMIs of all genes.
        tissue: (R, C) bool.

    Returns:
        (R,) and (C,) bool.

    Example:
        >>> umis = np.ones((6, 40)); umis[2] = 0
        >>> rows, cols = dead_lines(umis, np.ones((6, 40), bool))
        >>> np.flatnonzero(rows).tolist(), cols.any().tolist()
        ([2], False)
    """
    inside = np.where(tissue, umis, 0)
    n_lines = int(tissue.any(axis=0).sum() + tissue.any(axis=1).sum())
    level = SIGNIFICANCE / max(n_lines, 1)
    rows, cols = (
        _dead(inside.sum(axis=axis).astype(np.float64), tissue.sum(axis=axis), level)
        for axis in (1, 0)
    )
    return rows, cols


def _dead(umis: Float64Array, n_bins: Array, level: float) -> BoolArray:
    dead = np.zeros(len(umis), bool)
    alive = np.flatnonzero(umis > 0)
    for line in np.flatnonzero((umis == 0) & (n_bins > 0)).tolist():
        at = int(np.searchsorted(alive, line))
        near = alive[max(at - _NEIGHBOURS, 0) : at + _NEIGHBOURS]
        if not len(near):
            continue
        expected = n_bins[line] * umis[near].sum() / n_bins[near].sum()
        dead[line] = np.exp(-expected) < level
    return dead


def read_mask(path: Path, corner: tuple[int, int], shape: tuple[int, int]) -> BoolArray:
    """Read the user's mask of failed bins.

    Args:
        path: Image (PNG or TIFF) with a pixel per 2 µm bin of the capture area, array_row down and
            array_col to the right; any value but 0 marks a failed bin.
        corner: array_row and array_col of the first bin wanted.
        shape: (R, C) of the bins wanted.

    Returns:
        (R, C) bool.

    Raises:
        ConfigError: No such image, or one that does not cover the bins.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: expected an image of failed bins; found no such file")
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ConfigError(
            f"{path}: expected a PNG or TIFF image of failed bins; cannot be read as one"
        )
    if image.ndim == 3:
        image = image[..., :3].max(axis=2)
    rows, cols = corner[0] + shape[0], corner[1] + shape[1]
    if image.shape[0] < rows or image.shape[1] < cols:
        raise ConfigError(
            f"{path}: expected a pixel per 2 µm bin, at least {rows}×{cols} (rows × columns) for "
            f"this store; got {image.shape[0]}×{image.shape[1]}; draw it on the array's bins"
        )
    return np.asarray(image[corner[0] : rows, corner[1] : cols]) != 0


def check_share(failed: BoolArray, tissue: BoolArray, source: str) -> None:
    """Raise `ConfigError` where more than half of the tissue failed."""
    share = float((failed & tissue).sum() / max(tissue.sum(), 1))
    if share > _LARGEST_SHARE:
        raise ConfigError(
            f"{source}: expected at most half of the tissue bins to have failed; got {share:.0%}; "
            "see --failed"
        )

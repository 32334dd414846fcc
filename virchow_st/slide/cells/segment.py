"""Segments a slide's cells on its lattice, tile by tile.

A tile is a patch of 128 × 128 bins at 0.5 µm per pixel, in bin orientation. Tiles overlap by 32
bins; a cell is taken from the tile in whose inner part its middle lies, so that none is cut by a
border and none is found twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

from virchow_st.errors import SlideError
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.slide.cells.assign import from_labels
from virchow_st.slide.cells.cell_map import CellMap, without_empty
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.cells.segmenter import TILE_PX
from virchow_st.slide.cells.segmenters import load_segmenter, segmented
from virchow_st.slide.image import SlideImage
from virchow_st.slide.patches import render_patch
from virchow_st.types import PATCH_BINS, Array, UInt8Array

_MARGIN = 16  # bins; 32 µm, more than half a cell
_INNER = PATCH_BINS - 2 * _MARGIN
_PX = TILE_PX // PATCH_BINS
_LEAST_ON_IMAGE = 0.95  # share of the tissue
_SHOWN = 16  # tiles that a segmenter sees before


def segment_cells(
    name: str, image: Path, lattice: Lattice, progress: Progress = SILENT
) -> tuple[CellMap, str]:
    """Find the cells of a slide where there is tissue.

    Args:
        name: of the segmenter.
        image: the slide's full-resolution image, in whose pixels the lattice's homography is.
        lattice: bins of the slide.
        progress: receives the number of tiles.

    Returns:
        Cells named by running numbers in row-major order of the tiles, each with the bins whose
        centres lie in it; and the segmenter's package with its version.

    Raises:
        ConfigError: the segmenter fails.
        SlideError: the image is damaged or of another slide, or no cell is found on it.
    """
    segmenter, package = load_segmenter(name)
    labels = np.zeros(lattice.shape, np.int32)
    tiles = list(_tiles(lattice))
    n_cells = 0
    with SlideImage.open(image) as slide:
        _check(slide, lattice)

        def render(row: int, col: int) -> UInt8Array:
            at = lattice.row0 + row - _MARGIN, lattice.col0 + col - _MARGIN
            ((rendered, _),) = render_patch(slide, lattice.homography, *at, (TILE_PX,))
            return rendered

        some = tiles[:: max(1, len(tiles) // _SHOWN)][:_SHOWN]
        segmenter.prepare([render(*tile) for tile in some])
        for n, (row, col) in enumerate(tiles):
            found = segmented(segmenter, render(row, col), name)
            n_cells = _add(labels, found, row, col, n_cells)
            progress.step(n + 1, len(tiles), "tiles", name)
    if not n_cells:
        raise SlideError(
            f"{image}: expected cells on {lattice.name}; the segmenter {name} found none; look at "
            "the image with `vst inspect`"
        )
    ids = tuple(map(str, range(1, n_cells + 1)))
    return without_empty(from_labels(labels, lattice, ids)), package


def _check(image: SlideImage, lattice: Lattice) -> None:
    """Raise `SlideError` unless the image can be the one that the homography refers to."""
    remedy = "give the full-resolution image that the slide was extracted or predicted from"
    size = image.width, image.height
    if lattice.size_px not in (None, size):
        raise SlideError(
            f"{image.path}: expected {lattice.size_px[0]} × {lattice.size_px[1]} px, the size of "
            f"the image of {lattice.name}; got {size[0]} × {size[1]}; {remedy}"
        )
    if image.choice.orientation != 1:
        raise SlideError(
            f"{image.path}: expected an image without an Orientation tag, which programs read in "
            "different ways; save it turned as it was when the slide was extracted"
        )
    row, col = np.nonzero(lattice.tissue)
    xy = lattice.to_px(np.stack([col, row], axis=1)[:: max(1, len(row) // 10_000)].astype(float))
    shown = ((xy >= 0) & (xy < size)).all(axis=1).mean() if len(xy) else 0.0
    if shown < _LEAST_ON_IMAGE:
        raise SlideError(
            f"{image.path}: expected the tissue of {lattice.name} on it; its {size[0]} × {size[1]} "
            f"px hold {shown:.0%}; {remedy}"
        )


def _tiles(lattice: Lattice) -> Iterator[tuple[int, int]]:
    """First row and column of the inner part of each tile that has tissue there."""
    rows, cols = lattice.shape
    for row in range(0, rows, _INNER):
        for col in range(0, cols, _INNER):
            if lattice.tissue[row : row + _INNER, col : col + _INNER].any():
                yield row, col


def _add(labels: Array, found: Array, row: int, col: int, n_cells: int) -> int:
    """Add a tile's cells whose middle lies in its inner part, after the ``n_cells`` first ones."""
    names, inverse = np.unique(found, return_inverse=True)
    found = inverse.reshape(found.shape) + int(names[0] > 0)
    number = np.arange(1, int(found.max()) + 1)
    if not len(number):
        return n_cells
    middles = np.array(ndimage.center_of_mass(found > 0, found, number)) / _PX - _MARGIN
    inside = ((middles >= 0) & (middles < _INNER)).all(axis=1)
    new = np.zeros(len(number) + 1, np.int32)
    new[1:][inside] = n_cells + 1 + np.arange(int(inside.sum()))
    # The pixel below and right of a bin's centre stands for it.
    at_bins = new[found[_PX // 2 :: _PX, _PX // 2 :: _PX]]
    top, left = row - _MARGIN, col - _MARGIN
    r0, c0 = max(top, 0), max(left, 0)
    target = labels[r0 : top + PATCH_BINS, c0 : left + PATCH_BINS]
    part = at_bins[r0 - top : r0 - top + target.shape[0], c0 - left : c0 - left + target.shape[1]]
    free = (target == 0) & (part > 0)
    target[free] = part[free]
    return n_cells + int(inside.sum())

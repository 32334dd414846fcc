"""Slides with drawn nuclei, for the tests of segmenters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from virchow_st.slide.cells.cell_map import CellMap
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.geometry import Homography

HALF_UM = Homography(np.array([[0.0, 4.0, 2.0], [4.0, 0.0, 2.0], [0, 0, 1.0]]))
"""Rows run along x: the image is the transpose of the bins, at 0.5 µm/px."""


def discs(shape: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Dark discs on pink at 0.5 µm/px in bin orientation, and (R, C) labels of bins in them."""
    rng = np.random.default_rng(seed)
    rows, cols = (4 * n for n in shape)
    picture = np.full((rows, cols, 3), (236, 190, 214), np.uint8)
    numbers = np.zeros((rows, cols), np.int32)
    y, x = np.mgrid[:rows, :cols] + 0.5
    for number, at in enumerate(np.ndindex(rows // 40, cols // 40), start=1):
        cy, cx = (40 * k + 20 + rng.uniform(-6, 6) for k in at)
        inside = (y - cy) ** 2 + (x - cx) ** 2 < rng.uniform(8, 12) ** 2
        picture[inside], numbers[inside] = (92, 62, 140), number
    return picture, numbers[2::4, 2::4]


def lattice_of(shape: tuple[int, int]) -> Lattice:
    return Lattice("S", HALF_UM, 0, 0, np.ones(shape, bool))


def write_image(path: Path, picture: np.ndarray) -> Path:
    tifffile.imwrite(path, picture.transpose(1, 0, 2).copy(), tile=(256, 256), photometric="rgb")
    return path


def found_once(cells: CellMap, labels: np.ndarray) -> None:
    """Every drawn nucleus is one cell, where it lies, and there are no other cells."""
    n = int(labels.max())
    assert len(cells) == n
    assert (cells.labels > 0).mean() == pytest.approx((labels > 0).mean(), rel=0.1)
    for number in range(1, n + 1):
        disc = labels == number
        (found,) = np.unique(cells.labels[disc & (cells.labels > 0)])  # one cell
        both = (disc & (cells.labels == found)).sum()
        assert both / (disc | (cells.labels == found)).sum() > 0.7

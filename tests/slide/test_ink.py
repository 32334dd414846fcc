"""Pen marks: the area of planted ink is found, and none on clean slides."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from virchow_st.slide.ink import find_ink

PX = 8  # of 0.53 µm: an overview of about 4 µm/px


@pytest.fixture(scope="module")
def overview(simulated: Path) -> np.ndarray:
    image = tifffile.imread(simulated / "P1" / "tissue_image.tif")
    return np.asarray(cv2.resize(image, None, fx=1 / PX, fy=1 / PX, interpolation=cv2.INTER_AREA))


def test_a_clean_slide_has_none(overview: np.ndarray) -> None:
    assert not find_ink(overview, 4.2).any()


@pytest.mark.parametrize("ink", [(40, 70, 190), (30, 120, 70), (25, 25, 30)])
def test_planted_ink_is_found(overview: np.ndarray, ink: tuple[int, int, int]) -> None:
    """A line of 200 µm over tissue and glass; ink takes away light, as stain does."""
    inked = overview.copy()
    where = np.zeros(inked.shape[:2], bool)
    where[60:108] = True
    inked[where] = inked[where] * (np.array(ink) / 245.0)
    found = find_ink(inked, 4.2)
    assert found[where].mean() > 0.65
    assert found[~where].mean() < 0.01


def test_a_speck_of_pigment_is_no_pen(overview: np.ndarray) -> None:
    speckled = overview.copy()
    speckled[100:120, 100:120] = 20  # 84 µm
    assert not find_ink(speckled, 4.2).any()

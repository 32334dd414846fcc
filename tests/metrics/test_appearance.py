"""Appearance of slides: strengths against planted stains, sharpness against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, laplace

from virchow_st.metrics.appearance import appearance, sharpness, stain_angle, stain_shift

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
REST = np.cross(*STAINS)
UNMIX = np.linalg.inv(np.stack([*STAINS, REST / np.linalg.norm(REST)]))[:, :2]
MASK = np.ones((64, 64), bool)


def stained(haematoxylin: float, eosin: float, seed: int = 0) -> np.ndarray:
    """An image whose stains are spread evenly from 0 to these densities."""
    h, e = np.random.default_rng(seed).uniform(size=(2, 64, 64, 1))
    light = 256 * 10 ** -(haematoxylin * h * STAINS[0] + eosin * e * STAINS[1]) - 1
    return np.clip(np.round(light), 0, 255).astype(np.uint8)


def test_strengths_are_the_planted_ones() -> None:
    found = appearance([stained(0.8, 0.4, s) for s in range(8)], [MASK] * 8, UNMIX)
    # Quantiles of the tissue: the third of the pixels that is almost white is left out.
    assert found.haematoxylin == pytest.approx(0.98 * 0.8, rel=0.03)
    assert found.eosin == pytest.approx(0.9 * 0.4, rel=0.06)
    assert np.linalg.norm(found.colour) == pytest.approx(1)


def test_shift_and_angle_see_strength_and_colour() -> None:
    a = appearance([stained(0.8, 0.4)], [MASK], UNMIX)
    stronger = appearance([stained(1.2, 0.6)], [MASK], UNMIX)
    assert stain_shift(a, a) == stain_angle(a, a) == 0
    assert stain_shift(a, stronger) == pytest.approx(np.log(1.5) / 0.15, rel=0.06)
    assert stain_angle(a, stronger) < 1.5
    bluer = appearance([stained(0.8, 0.05)], [MASK], UNMIX)
    assert stain_angle(a, bluer) > 5


def test_sharpness_is_the_variance_of_scipys_laplacian() -> None:
    image = np.random.default_rng(1).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    mask = np.random.default_rng(2).random((40, 50)) > 0.4
    expected = laplace(image @ [0.299, 0.587, 0.114])[1:-1, 1:-1][mask[1:-1, 1:-1]].var()
    assert sharpness(image, mask) == pytest.approx(expected)
    assert sharpness(image, np.zeros_like(mask)) == 0
    blurred = gaussian_filter(image.astype(float), (1, 1, 0)).astype(np.uint8)
    assert sharpness(blurred, mask) < 0.1 * expected


def test_glass_has_no_stain_and_is_not_sharp() -> None:
    glass = np.full((64, 64, 3), 255, np.uint8)
    for mask in (MASK, ~MASK):
        found = appearance([glass], [mask], UNMIX)
        assert (found.haematoxylin, found.eosin, found.sharpness) == (0.01, 0.01, 0.0)

"""Stains multiplied in optical density, against the same in plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from virchow_st.slide.restain import Restain

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [-0.21, -0.05, 0.59]])


def every_colour() -> np.ndarray:
    """All colours in steps of 15, as an image (18, 324, 3)."""
    steps = np.arange(0, 256, 15)
    return np.stack(np.meshgrid(steps, steps, steps), -1).reshape(18, -1, 3).astype(np.uint8)


@pytest.mark.parametrize("factors", [(1.3, 0.7), (0.5, 2.0), (1.0, 1.5)])
def test_it_multiplies_the_concentrations(factors) -> None:
    image = every_colour()
    density = -np.log10((image.astype(np.float64) + 1) / 256)
    concentrations = np.linalg.solve(STAINS.T, density.reshape(-1, 3).T)
    concentrations[:2] *= np.array(factors)[:, None]
    expected = (256 * 10 ** -(STAINS.T @ concentrations) - 1).T.reshape(image.shape)
    found = Restain(*factors, STAINS)(image)
    assert found.dtype == np.uint8
    # Half a level, and a little for single precision.
    assert np.abs(found - np.clip(expected, 0, 255)).max() < 0.51


def test_white_stays_white_and_factors_of_one_change_nothing() -> None:
    white = np.full((4, 4, 3), 255, np.uint8)
    np.testing.assert_array_equal(Restain(1.7, 0.4, STAINS)(white), white)
    image = every_colour()
    assert Restain(1.0, 1.0, STAINS)(image) is image
    assert (Restain(1.0, 1.0 + 1e-12, STAINS)(image) == image).all()


def test_the_inverse_takes_it_back() -> None:
    tissue = np.array([[[180, 120, 170], [120, 80, 150], [225, 160, 200]]], np.uint8)
    there = Restain(1.25, 0.8, STAINS)(tissue)
    assert np.abs(there.astype(int) - tissue).max() > 5
    back = Restain(1 / 1.25, 1 / 0.8, STAINS)(there)
    assert np.abs(back.astype(int) - tissue).max() <= 1

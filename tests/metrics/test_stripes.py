"""Efficiencies of rows and columns are found where they are, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import Generator

from virchow_st.metrics.stripes import SEGMENT_BINS, _posterior, _segments, estimate_stripes
from virchow_st.types import BoolArray, Float64Array

SHAPE = (300, 420)


def tissue_surface(rng: Generator, length: tuple[float, float]) -> Float64Array:
    """Positive surface with structures of these standard deviations in bins, (row, col)."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.standard_normal(SHAPE), length)
    return np.asarray(8 * np.exp(0.6 * noise / noise.std()))


def round_mask() -> BoolArray:
    """Tissue as an ellipse, so that lines have tissue of different length."""
    row, col = np.indices(SHAPE)
    return np.asarray(
        ((row / SHAPE[0] - 0.5) / 0.48) ** 2 + ((col / SHAPE[1] - 0.5) / 0.48) ** 2 <= 1
    )


def errors(efficiency: Float64Array, truth: Float64Array, counted: BoolArray) -> Float64Array:
    """Errors of the logarithm, up to a common factor, of the lines with tissue."""
    error = (np.log(efficiency) - np.log(truth))[counted]
    return np.asarray(error - error.mean())


@pytest.mark.parametrize("seed", [201, 202, 203])
@pytest.mark.parametrize("sd", [0.1, 0.3])
def test_stripes_are_found_within_their_standard_error(seed: int, sd: float) -> None:
    rng = np.random.default_rng(seed)
    mask = round_mask()
    truth = np.exp(rng.normal(0, sd, SHAPE[0])), np.exp(rng.normal(0, sd, SHAPE[1]))
    surface = tissue_surface(rng, (6.0, 6.0)) * truth[0][:, None] * truth[1]
    found = estimate_stripes(rng.poisson(surface), mask)
    for axis in (0, 1):
        counted = mask.sum(1 - axis) >= 64
        error = errors(found[axis].efficiency, truth[axis], counted)
        assert error.std() < 0.5 * sd
        assert 0.5 < error.std() / found[axis].mean_se < 1.6
        assert found[axis].sd == pytest.approx(sd, rel=0.15)
        assert (mask.sum(1 - axis) @ found[axis].efficiency) / mask.sum() == pytest.approx(
            1, abs=1e-9
        )


@pytest.mark.parametrize("seed", range(201, 211))
def test_tissue_without_stripes_has_efficiencies_of_exactly_one(seed: int) -> None:
    """Structures that are elongated along rows, 3 × 30 bins, are no stripes."""
    rng = np.random.default_rng(seed)
    for row_length, col_length in ((3.0, 30.0), (6.0, 6.0)):
        umis = rng.poisson(tissue_surface(rng, (row_length, col_length)))
        for stripes in estimate_stripes(umis, np.ones(SHAPE, bool)):
            assert stripes.sd == 0
            assert (stripes.efficiency == 1).all()
            assert (stripes.se == 0).all()


def test_the_posterior_is_that_of_a_dense_solution() -> None:
    """The terms solve the equations of the mode, written out for all unknowns at once."""
    rng = np.random.default_rng(0)
    n, variance, change = 40, 0.02, 0.01
    exposure = rng.uniform(20, 60, (n, 3))
    exposure[5, 1] = 0
    counts = rng.poisson(exposure * np.exp(rng.normal(0, 0.15, n))[:, None]).astype(float)
    terms, _ = _posterior(counts, exposure, variance, change)
    walk = np.zeros((n, n))
    for i in range(n - 1):
        walk[i : i + 2, i : i + 2] += np.array([[1, -1], [-1, 1]]) / change
    x = np.zeros(4 * n)  # surfaces of three columns of segments, then the terms
    for _ in range(50):
        surface, own = x[: 3 * n].reshape(3, n).T, x[3 * n :]
        mu = exposure * np.exp(surface + own[:, None])
        gradient = np.concatenate([(counts - mu).T.ravel(), (counts - mu).sum(1)])
        precision = np.zeros((4 * n, 4 * n))
        curvature = np.zeros_like(precision)
        for s in range(3):
            at = slice(s * n, (s + 1) * n)
            precision[at, at] = walk + 1e-9 * np.eye(n)
            curvature[at, at] = np.diag(mu[:, s])
            curvature[at, 3 * n :] = curvature[3 * n :, at] = np.diag(mu[:, s])
        curvature[3 * n :, 3 * n :] = np.diag(mu.sum(1))
        precision[3 * n :, 3 * n :] = np.eye(n) / variance
        x += np.linalg.solve(curvature + precision, gradient - precision @ x)
    np.testing.assert_allclose(terms, x[3 * n :], atol=2e-3)


def test_lines_without_tissue_have_no_efficiency() -> None:
    rng = np.random.default_rng(1)
    mask = np.ones(SHAPE, bool)
    mask[:40] = False
    truth = np.exp(rng.normal(0, 0.2, SHAPE[0]))
    umis = rng.poisson(6 * truth[:, None] * np.ones(SHAPE))
    umis[~mask] = 10_000  # not used
    rows, _ = estimate_stripes(umis, mask)
    assert (rows.efficiency[:40] == 1).all()
    assert errors(rows.efficiency[40:], truth[40:], np.ones(260, bool)).std() < 0.05


def test_a_slide_without_umis_or_tissue_has_no_stripes() -> None:
    for umis, mask in ((0, True), (5, False)):
        for stripes in estimate_stripes(np.full((64, 80), umis), np.full((64, 80), mask)):
            assert stripes.sd == 0
            assert (stripes.efficiency == 1).all()


def test_maps_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one shape"):
        estimate_stripes(np.zeros((4, 4)), np.zeros((4, 5), bool))


def test_segments_end_with_the_line() -> None:
    x = np.ones((1, 2 * SEGMENT_BINS + 3))
    assert _segments(x).tolist() == [[SEGMENT_BINS, SEGMENT_BINS, 3]]

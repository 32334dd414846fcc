"""Smoothing over tissue: mass, edges, holes, and a plain dense reference."""

from __future__ import annotations

import numpy as np
import pytest

from virchow_st.denoise.ems import fit_factors, log_likelihood
from virchow_st.denoise.smooth import Smoother
from virchow_st.training.rows import SparseRows

SHAPE = 24, 31


@pytest.fixture
def tissue() -> np.ndarray:
    """A blob with a hole, a corner that is off, and an island of one bin."""
    mask = np.zeros(SHAPE, bool)
    mask[2:20, 0:25] = True
    mask[8:12, 9:14] = False
    mask[2:5, 0:4] = False
    mask[22, 29] = True
    return mask


def dense_kernel(tissue: np.ndarray, width_um: float) -> np.ndarray:
    """(n, n) weights exp(−d²/2σ²) between tissue bins, rows divided by their sums."""
    at = np.argwhere(tissue)
    sd = width_um / 2
    apart = at[:, None] - at[None]
    weights = np.exp(-0.5 * (apart**2).sum(-1) / sd**2)
    weights[(np.abs(apart) > np.ceil(4 * sd)).any(-1)] = 0
    return weights / weights.sum(1, keepdims=True)


def dense_smooth(umis: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    rate = kernel @ umis
    return rate * (umis.sum() / rate.sum())


@pytest.mark.parametrize("width_um", [1.4, 4.0, 16.0])
def test_smoothing_is_that_of_the_dense_kernel(tissue: np.ndarray, width_um: float) -> None:
    umis = np.random.default_rng(0).poisson(0.7, tissue.sum()).astype(float)
    found = Smoother(np.flatnonzero(tissue), SHAPE).smoothed(umis, width_um)
    np.testing.assert_allclose(found, dense_smooth(umis, dense_kernel(tissue, width_um)), rtol=2e-5)
    assert found.sum() == pytest.approx(umis.sum(), rel=1e-5)


def test_a_constant_stays_constant_at_edges_and_holes(tissue: np.ndarray) -> None:
    found = Smoother(np.flatnonzero(tissue), SHAPE).smoothed(np.full(tissue.sum(), 3.0), 16.0)
    np.testing.assert_allclose(found, 3.0, rtol=1e-5)


def reference_ems(
    x: np.ndarray, loadings: np.ndarray, tissue: np.ndarray, widths: list[float], n_steps: int
) -> np.ndarray:
    """EM with smoothing on dense matrices in float64."""
    total = dense_smooth(x.sum(1), dense_kernel(tissue, widths[0]))
    h = np.repeat(total[:, None], loadings.shape[1], 1) / loadings.shape[1]
    for width in widths:
        kernel = dense_kernel(tissue, width)
        for _ in range(n_steps):
            umis = h * ((x / (h @ loadings.T)) @ loadings)
            h = np.stack([dense_smooth(u, kernel) for u in umis.T], 1)
    return h


def test_ems_is_the_dense_reference(tissue: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    loadings = rng.dirichlet(np.full(7, 0.5), 3).T + 1e-3
    loadings /= loadings.sum(0)
    n = int(tissue.sum())
    x = rng.poisson(4 * rng.gamma(0.5, 1, (n, 3)) @ loadings.T)
    rows = SparseRows.from_dense(x, np.ones(n))
    widths = [16.0, 6.0, 2.0]
    found = fit_factors(rows, loadings, Smoother(np.flatnonzero(tissue), SHAPE), widths, n_steps=2)
    expected = reference_ems(x, loadings, tissue, widths, 2)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)
    assert found.sum() == pytest.approx(x.sum(), rel=1e-4)
    rate = found.astype(float) @ loadings.T
    assert log_likelihood(rows, found, loadings) == pytest.approx(
        (x * np.log(rate) - rate).sum(), rel=1e-5
    )


def test_rates_of_a_part_are_those_of_the_whole(tissue: np.ndarray) -> None:
    """With exposure ½ the same counts mean twice the rate."""
    n = int(tissue.sum())
    x = np.random.default_rng(2).poisson(1.0, (n, 4))
    loadings = np.full((4, 1), 0.25)
    smoother = Smoother(np.flatnonzero(tissue), SHAPE)
    whole, half = (
        fit_factors(SparseRows.from_dense(x, np.full(n, e)), loadings, smoother, [8.0])
        for e in (1.0, 0.5)
    )
    np.testing.assert_allclose(half, 2 * whole, rtol=1e-5)

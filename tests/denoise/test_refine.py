"""What follows the fit by a Gaussian: loadings at 2 µm, and smoothing among bins that are alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from virchow_st.denoise import alike
from virchow_st.denoise.alike import fit_alike
from virchow_st.denoise.ems import fit_factors
from virchow_st.denoise.refine import Parts, choose_refinement
from virchow_st.denoise.refit import refit
from virchow_st.denoise.smooth import Smoother
from virchow_st.training.rows import SparseRows

SIDE, GENES = 64, 12
WIDTH_UM = 4.0


class Halves:
    """Two programmes in stripes of 10 µm: neither fills a 16 µm bin, and borders are sharp."""

    def __init__(self, umis: float, exposure: float = 1.0) -> None:
        rng = np.random.default_rng(5)
        self.loadings = rng.dirichlet(np.full(GENES, 0.4), 2).T + 1e-3
        self.loadings /= self.loadings.sum(0)
        self.factors = np.zeros((SIDE * SIDE, 2))
        in_first = (np.arange(SIDE) // 5 % 2 == 0)[:, None].repeat(SIDE, 1).ravel()
        self.factors[:, 0], self.factors[:, 1] = umis * in_first, 0.5 * umis * ~in_first
        self.rate = self.factors @ self.loadings.T
        x = rng.poisson(exposure * self.rate)
        self.counts = SparseRows.from_dense(x, np.full(len(x), exposure))
        self.left = SparseRows.from_dense(rng.poisson(self.rate), np.ones(len(x)))
        self.smoother = Smoother(np.arange(SIDE**2), (SIDE, SIDE))

    def gaussian(self, loadings: np.ndarray, width_um: float = WIDTH_UM) -> np.ndarray:
        return fit_factors(self.counts, loadings, self.smoother, [16.0, 8.0, width_um])

    def error(self, factors: np.ndarray, loadings: np.ndarray) -> float:
        """Poisson deviance of the true rates, per bin."""
        x = factors.astype(float) @ loadings.T
        return float((self.rate * np.log(self.rate / x) - self.rate + x).sum() / SIDE**2)


@pytest.fixture(scope="module")
def halves() -> Halves:
    return Halves(6.0)


def test_bins_that_are_alike_are_smoothed_further_and_borders_stay(halves: Halves) -> None:
    widths = [8.0, WIDTH_UM, 2.0]
    fits = [halves.gaussian(halves.loadings, width_um) for width_um in widths]
    best = min(halves.error(fit, halves.loadings) for fit in fits)
    given = fits[1].copy()
    found = fit_alike(halves.counts, fits[1], halves.loadings, halves.smoother, WIDTH_UM, 4.0)
    assert halves.error(found, halves.loadings) < 0.5 * best
    np.testing.assert_array_equal(fits[1], given)
    assert found.sum() == pytest.approx(halves.counts.count.sum(), rel=1e-4)


def test_one_step_is_the_weighted_mean(halves: Halves, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one factor, against weights computed bin by bin in float64, edges included."""
    monkeypatch.setattr(alike, "STEPS_PER_WIDTH", 1)
    whole = np.ones((GENES, 1)) / GENES
    start = halves.gaussian(whole)
    found = fit_alike(halves.counts, start, whole, halves.smoother, WIDTH_UM, 4.0)
    umis, root = halves.counts.totals, np.sqrt(start[:, 0].astype(float))
    span = 4.0 / (8 * math.pi * (WIDTH_UM / 2) ** 2)
    at = np.array([0, SIDE - 1, SIDE * 9 + 20, SIDE * 10 + 20, SIDE * SIDE - 1])
    place = np.stack(np.divmod(np.arange(SIDE**2), SIDE), 1)
    apart = np.abs(place[at][:, None] - place[None])
    sd = 2 * WIDTH_UM / 2
    weight = np.exp(-0.5 * (apart**2).sum(-1) / sd**2) * (apart <= math.ceil(2.5 * sd)).all(-1)
    weight *= np.maximum(1 - (root[at][:, None] - root) ** 2 / span, 0) ** 2
    expected = weight @ umis / weight.sum(1)
    np.testing.assert_allclose(found[at, 0] / found[at[0], 0], expected / expected[0], rtol=1e-4)


def test_a_guide_is_followed_within_the_wider_gaussian() -> None:
    smoother, whole = Smoother(np.arange(400), (20, 20)), np.ones((3, 1)) / 3
    guide = np.exp(gaussian_filter(np.random.default_rng(0).normal(0, 2, (20, 20)), 1)).ravel()
    counts = SparseRows.from_dense(1 + np.zeros((400, 3)), np.ones(400))
    start = np.full((400, 1), 3.0, np.float32)
    given = guide.astype(np.float32)
    found = fit_alike(counts, start, whole, smoother, 8.0, 4.0, guide=lambda _: given)
    plain = fit_alike(counts, start, whole, smoother, 8.0, 4.0)
    np.testing.assert_allclose(plain, 3.0, rtol=1e-5)
    assert np.corrcoef(found[:, 0], guide)[0, 1] > 0.97


@pytest.mark.parametrize("exposure", [1.0, 0.5])
def test_loadings_fitted_again_are_nearer_the_truth(exposure: float) -> None:
    halves = Halves(6.0, exposure)
    mixed = halves.loadings @ np.array([[0.75, 0.35], [0.25, 0.65]])  # as bins of 16 µm show them
    start = halves.gaussian(mixed)
    loadings, factors = refit(halves.counts, start, mixed, halves.smoother, WIDTH_UM, 30.0)
    before, after = (np.abs(x - halves.loadings).sum() for x in (mixed, loadings))
    assert after < 0.5 * before
    assert halves.error(factors, loadings) < halves.error(start, mixed)
    np.testing.assert_allclose(loadings.sum(0), 1.0, rtol=1e-9)
    assert factors.sum() == pytest.approx(halves.counts.count.sum() / exposure, rel=1e-4)


def test_genes_without_umis_keep_their_loadings(halves: Halves) -> None:
    more = np.vstack([halves.loadings, [[0.002, 0.001]]])
    more /= more.sum(0)
    counts = halves.counts
    wider = SparseRows(counts.indptr, counts.gene, counts.count, counts.exposure, GENES + 1)
    start = fit_factors(wider, more, halves.smoother, [16.0, 8.0, WIDTH_UM])
    loadings, _ = refit(wider, start, more, halves.smoother, WIDTH_UM, 30.0)
    np.testing.assert_allclose(loadings[-1], more[-1], rtol=0.1)


def test_a_large_prior_keeps_all_loadings(halves: Halves) -> None:
    start = halves.gaussian(halves.loadings)
    loadings, _ = refit(halves.counts, start, halves.loadings, halves.smoother, WIDTH_UM, 1e12)
    # The genes' sums are those of the counts.
    np.testing.assert_allclose(
        loadings[:, 0] / loadings[:, 1], halves.loadings[:, 0] / halves.loadings[:, 1], rtol=0.1
    )


def test_what_predicts_held_out_counts_is_chosen(halves: Halves) -> None:
    mixed = halves.loadings @ np.array([[0.75, 0.35], [0.25, 0.65]])
    parts = Parts(halves.counts, halves.left, halves.smoother)
    start = halves.gaussian(mixed)
    found = choose_refinement(parts, start, mixed, WIDTH_UM)
    assert found.refinement.prior_umis is not None
    assert found.refinement.tolerance is not None
    assert halves.error(found.factors, found.loadings) < 0.5 * halves.error(start, mixed)


def test_a_flat_slide_and_loadings_that_fit_need_no_refinement() -> None:
    """With few UMIs and nothing to find, what is chosen is no worse than the Gaussian."""
    rng = np.random.default_rng(0)
    loadings = np.full((6, 1), 1 / 6)
    rows, left = (SparseRows.from_dense(rng.poisson(0.1, (400, 6)), np.ones(400)) for _ in "ab")
    smoother = Smoother(np.arange(400), (20, 20))
    start = fit_factors(rows, loadings, smoother, [16.0])
    found = choose_refinement(Parts(rows, left, smoother), start, loadings, 16.0)
    assert found.refinement.tolerance is None  # there is no wider Gaussian

"""Scores with an exposure: weights and counts per exposure, and what stripes do to them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from virchow_st.kernels.pooling import sum_pool
from virchow_st.metrics import ScaleAccumulator, ScaleScores
from virchow_st.metrics.factor_scores import FactorScores

G, SIDE = 3, 64
TRAIN_RATE = np.array([0.3, 0.6, 1.5])


def rates(rng: np.random.Generator, side: int = SIDE) -> np.ndarray:
    """Smooth rates of three genes."""
    field = gaussian_filter(rng.standard_normal((G, side, side)), (0, 4, 4))
    field = np.exp(0.8 * field / field.std((1, 2), keepdims=True))
    return (TRAIN_RATE[:, None, None] * field).astype(np.float32)


def striped(rng: np.random.Generator, sd: float, side: int = SIDE) -> np.ndarray:
    rows, cols = np.exp(rng.normal(0, sd, (2, side)) - sd**2 / 2)
    return np.outer(rows, cols).astype(np.float32)


def scored(scale_um: int, rate, counts, mask, exposure=None, **more) -> ScaleScores:
    accumulator = ScaleAccumulator(G, scale_um, TRAIN_RATE)
    accumulator.update(rate, counts, mask, exposure=exposure, **more)
    return accumulator.compute()


@pytest.mark.parametrize("scale_um", [2, 8])
def test_an_exposure_of_one_changes_no_score(scale_um: int) -> None:
    rng = np.random.default_rng(0)
    rate = rates(rng)
    counts = rng.poisson(rate).astype(np.float32)
    mask = rng.random((SIDE, SIDE)) < 0.999
    nulls = {"shuffled_rate": rates(rng), "shifted_rate": rates(rng)}
    without = scored(scale_um, rate, counts, mask, **nulls)
    one = scored(scale_um, rate, counts, mask, np.ones((SIDE, SIDE), np.float32), **nulls)
    for name, value in vars(without).items():
        if name != "pcc_ceiling_thinned":
            np.testing.assert_allclose(getattr(one, name), value, rtol=1e-9, err_msg=name)
    assert np.isnan(one.pcc_ceiling_thinned).all()


@pytest.mark.parametrize("scale_um", [2, 8])
def test_scores_follow_their_definitions(scale_um: int) -> None:
    rng = np.random.default_rng(1)
    rate, exposure = rates(rng), striped(rng, 0.3)
    counts = rng.poisson(rate * exposure).astype(np.float32)
    mask = np.ones((SIDE, SIDE), bool)
    mask[:9] = False
    found = scored(scale_um, rate, counts, mask, exposure)
    f = scale_um // 2
    whole = (sum_pool(mask[None].astype("f4"), f)[0] if f > 1 else mask) == f * f

    def pooled(x):
        return (sum_pool(np.ascontiguousarray(x, np.float64), f) if f > 1 else x)[:, whole]

    expected, k = pooled((rate * exposure).astype("f4")), pooled(counts)
    e = pooled(exposure[None].astype(np.float64))[0] / f**2
    lam, per_exposure = expected / e, k / e
    for g in range(G):
        covariance = np.cov(lam[g], per_exposure[g], aweights=e)
        pcc = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
        assert found.pcc[g] == pytest.approx(pcc, rel=1e-5)
        null = TRAIN_RATE[g] * f**2 * e

        def deviance(mean, y=k[g]):
            return 2 * np.sum(np.where(y > 0, y * np.log(np.maximum(y, 1) / mean), 0) - y + mean)

        d2 = 1 - deviance(expected[g]) / deviance(null)
        assert found.d2_poisson[g] == pytest.approx(d2, rel=1e-4)
        assert found.calibration[g] == pytest.approx(expected[g].sum() / k[g].sum(), rel=1e-5)
        assert found.mean[g] == pytest.approx(k[g].sum() / e.sum(), rel=1e-6)
    assert found.n_bins == whole.sum()


@pytest.mark.parametrize("seed", [201, 202, 203])
def test_stripes_that_are_known_change_no_score_by_more_than_noise(seed: int) -> None:
    """The same tissue with and without stripes of 20 %, scored at the true rate."""
    side = 512
    rng = np.random.default_rng(seed)
    rate, exposure, mask = rates(rng, side), striped(rng, 0.2, side), np.ones((side, side), bool)
    plain = rng.poisson(rate).astype(np.float32)
    with_stripes = rng.poisson(rate * exposure).astype(np.float32)
    for scale in (2, 8):
        a = scored(scale, rate, plain, mask)
        b = scored(scale, rate, with_stripes, mask, exposure)
        blind = scored(scale, rate, with_stripes, mask)
        for name in ("pcc", "pcc_ceiling", "d2_poisson", "calibration"):
            assert np.abs(getattr(a, name) - getattr(b, name)).max() < 0.012, (name, scale)
        assert (blind.d2_poisson < b.d2_poisson).all()
        mean = np.broadcast_to(TRAIN_RATE.astype("f4")[:, None, None], rate.shape)
        known = scored(scale, mean, with_stripes, mask, exposure)
        assert (known.pcc == 0).all()  # stripes alone are no skill
        assert np.abs(known.d2_poisson).max() < 1e-4


@pytest.mark.parametrize("scale_um", [2, 8])
def test_factors_score_as_dense_rates(scale_um: int) -> None:
    rng = np.random.default_rng(3)
    loadings = rng.gamma(1.0, 0.3, (G, 4))
    h = rng.gamma(1.0, 1.0, (4, SIDE, SIDE)).astype(np.float32)
    exposure, f = striped(rng, 0.3), scale_um // 2
    rate = np.tensordot(loadings, h.astype(np.float64), 1).astype(np.float32)
    counts = rng.poisson(rate * exposure).astype(np.uint16)
    mask = np.ones((SIDE, SIDE), bool)
    mask[:, :5] = False
    dense = scored(scale_um, rate, counts, mask, exposure)
    pooled = h
    if f > 1:
        of_bins = sum_pool(exposure[None], f)[0] / f**2
        pooled = (sum_pool(h * exposure, f) / of_bins).astype(np.float32)
    gene, position = np.nonzero(counts.reshape(G, -1))
    scores = FactorScores(loadings, scale_um, TRAIN_RATE)
    scores.update(
        np.searchsorted(gene, np.arange(G + 1)),
        position.astype(np.uint16),
        counts.reshape(G, -1)[gene, position].astype(np.uint32),
        np.ascontiguousarray(pooled.reshape(4, -1).T),
        mask,
        exposure=exposure,
    )
    found = scores.compute()
    for name in ("pcc", "pcc_ceiling", "d2_poisson", "calibration", "mean", "nonzero"):
        np.testing.assert_allclose(getattr(found, name), getattr(dense, name), rtol=1e-4)
    assert found.n_bins == dense.n_bins


def test_an_exposure_that_is_none_is_refused() -> None:
    ones, mask = np.ones((G, 4, 4), np.float32), np.ones((4, 4), bool)
    for exposure, problem in ((np.zeros((4, 4)), "above 0 on tissue"), (np.ones((4, 3)), "shape")):
        with pytest.raises(ValueError, match=problem):
            scored(2, ones, ones, mask, exposure.astype(np.float32))

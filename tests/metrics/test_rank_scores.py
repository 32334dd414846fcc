"""Spearman's ρ, AUROC and AUPRC in one pass: what SciPy and scikit-learn give when rounded."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from virchow_st.kernels.joint import JointHistogram
from virchow_st.kernels.reference import count_classes, rate_keys
from virchow_st.kernels.table import draw_patch
from virchow_st.metrics.ranks import AUPRC, AUROC, PREVALENCE, SPEARMAN, rank_scores

G = 6


def draw(scale: float, n: int = 30_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rates (G, n) of several spreads, negative ones among them, and counts; ``scale`` UMIs."""
    rng = np.random.default_rng(seed)
    spread = np.linspace(0.1, 1.5, G)[:, None]
    truth = scale * np.exp(spread * rng.normal(size=(G, n)) - spread**2 / 2)
    rate = truth * rng.gamma(5, 0.2, truth.shape)
    rate[-1] -= scale / 2
    return rate.astype(np.float32), rng.poisson(truth).astype(np.uint16)


def figures(rate: np.ndarray, counts: np.ndarray, n_parts: int = 1) -> np.ndarray:
    pairs = JointHistogram(len(rate))
    for part in np.array_split(np.arange(rate.shape[1]), n_parts):
        pairs.update(rate[:, part].copy(), counts[:, part].copy(), np.ones(part.size, np.bool_))
    return rank_scores(pairs, len(rate))


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0, 150.0])
def test_figures_equal_scipy_and_scikit_learn_on_rounded_values(scale: float) -> None:
    rate, counts = draw(scale)
    got = figures(rate, counts, n_parts=3)
    for g in range(G):
        x, y = rate_keys(rate[g]), count_classes(counts[g])
        assert got[g, SPEARMAN] == pytest.approx(spearmanr(x, y).statistic, abs=1e-9)
        assert counts[g].min() == 0 or np.isnan(got[g, AUROC])
        if counts[g].min() == 0:
            assert got[g, AUROC] == pytest.approx(roc_auc_score(y > 0, x), abs=1e-9)
            assert got[g, AUPRC] == pytest.approx(average_precision_score(y > 0, x), abs=1e-9)
            assert got[g, PREVALENCE] == pytest.approx((y > 0).mean(), abs=1e-12)


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0, 150.0])
def test_rounding_hardly_changes_a_score(scale: float) -> None:
    """Against the values as they are; gene 0 varies by a tenth of itself only."""
    rate, counts = draw(scale)
    got = figures(rate, counts)
    for g in range(G):
        x, y = rate[g], counts[g]
        assert got[g, SPEARMAN] == pytest.approx(spearmanr(x, y).statistic, abs=2e-4)
        if y.min() == 0:
            assert got[g, AUROC] == pytest.approx(roc_auc_score(y > 0, x), abs=2e-4)
            assert got[g, AUPRC] == pytest.approx(average_precision_score(y > 0, x), abs=5e-4)


def test_rounded_values_keep_their_order() -> None:
    rng = np.random.default_rng(1)
    sizes = np.exp(rng.uniform(-16, 16, 20_000))
    x = np.sort(np.concatenate([-sizes, [0.0], sizes])).astype(np.float32)
    keys = rate_keys(x)
    assert (np.diff(keys) >= 0).all()
    inside = (np.abs(x) >= 2.0**-20) & (np.abs(x) < 2.0**20)
    for sign in (-1, 1):
        part = x[inside & (np.sign(x) == sign)].astype(np.float64)
        widest = [np.ptp(p) / np.abs(p).min() for p in np.split(part, np.flatnonzero(
            np.diff(keys[inside & (np.sign(x) == sign)])) + 1)]  # fmt: skip
        assert max(widest) < 1 / 256
    k = np.arange(200_000)
    classes = count_classes(k)
    np.testing.assert_array_equal(classes[:65], k[:65])
    assert set(np.diff(classes)) == {0, 1}


def test_what_is_undefined() -> None:
    some, none, every = [0, 0, 1, 2], [0, 0, 0, 0], [1, 2, 1, 1]
    counts = np.array([some, none, every, some], np.uint16)
    rate = np.array([[1, 1, 1, 1], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]], np.float32)
    got = figures(rate, counts)
    np.testing.assert_array_equal(got[0], [0.0, 0.5, 0.5, 0.5])
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[2, SPEARMAN])
    assert np.isnan(got[2, AUROC:]).all()
    np.testing.assert_allclose(got[3, AUROC:], [1.0, 1.0, 0.5])
    assert np.isnan(rank_scores(JointHistogram(2), 2)).all()


def test_memory_does_not_grow_with_the_patches() -> None:
    rng = np.random.default_rng(2)
    pairs = JointHistogram(50)
    held = []
    for _ in range(6):
        rate, counts, mask = draw_patch(rng)
        pairs.update(rate.reshape(50, -1), counts.reshape(50, -1), mask.ravel())
        held.append(pairs.nbytes)
    assert held[-1] == held[1] < 5e6
    n = sum(pairs.cells(3)[2])
    assert n == pairs.n_bins > 0


def test_too_many_bins_are_refused() -> None:
    pairs = JointHistogram(1)
    pairs.n_bins = 2**32 - 2
    with pytest.raises(OverflowError, match="4294967295 bins"):
        pairs.update(np.ones((1, 2), np.float32), np.ones((1, 2), np.uint16), np.ones(2, np.bool_))

"""Pearson's correlation from sums, its mean over genes, and its noise ceiling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr

from virchow_st.kernels.moments import masked_moments
from virchow_st.metrics.ceiling import noise_ceiling
from virchow_st.metrics.correlation import fisher_mean, pearson_from_moments


def test_pearson_edge_cases() -> None:
    def of(x, y) -> float:
        x, y = np.asarray(x, float), np.asarray(y, float)
        sums = [x.size, x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()]
        return float(pearson_from_moments(np.array(sums, dtype=float)))

    assert of([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0)
    assert of([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert of([0.1, 0.1, 0.1], [1, 0, 0]) == 0.0
    assert np.isnan(of([1, 2, 3], [1, 1, 1]))
    assert np.isnan(of([], []))
    assert np.isnan(of([1], [1]))


def test_a_constant_over_a_whole_slide_stays_constant() -> None:
    """Five million bins of rates whose squares a sum has to round."""
    rng = np.random.default_rng(5)
    rate = rng.uniform(0.01, 0.1, (20, 1)).astype(np.float32)
    x, total = np.repeat(rate, 16384, axis=1), np.zeros((20, 6))
    y = rng.poisson(0.05, x.shape).astype(np.uint16)
    for _ in range(300):
        total += masked_moments(x, y, np.ones(16384, np.bool_))
    np.testing.assert_array_equal(pearson_from_moments(total), 0.0)


def test_rounding_that_follows_the_counts_is_no_prediction() -> None:
    y = np.random.default_rng(5).poisson(0.05, (1, 16384)).astype(np.uint16)
    x = np.float32(0.047) * (1 + np.float32(2e-7) * y.astype(np.float32))
    assert np.unique(x).size > 1
    assert pearsonr(x[0].astype(np.float64), y[0]).statistic > 0.9
    assert pearson_from_moments(masked_moments(x, y, np.ones(16384, np.bool_)))[0] == 0.0


def test_a_small_signal_on_a_large_slide_is_not_lost_to_cancellation() -> None:
    rng = np.random.default_rng(6)

    x = 0.05 * (1 + 1e-3 * rng.normal(size=(1, 1_000_000)))
    y = rng.poisson(0.05 + 20 * (x - 0.05)).astype(np.float64)
    got = pearson_from_moments(masked_moments(x, y, np.ones(x.shape[1], np.bool_)))[0]
    assert got == pytest.approx(pearsonr(x[0], y[0]).statistic, abs=1e-9)


def test_fisher_mean() -> None:
    r = np.array([0.1, 0.5, 0.9])
    assert fisher_mean(r) == pytest.approx(np.tanh(np.arctanh(r).mean()))
    assert np.isnan(fisher_mean(np.array([])))
    assert fisher_mean(np.array([1.0, 1.0])) == pytest.approx(1.0)


def test_noise_ceiling_in_closed_form() -> None:
    """λ is 1 or 3 with even odds: Var λ = 1, E λ = 2, so r = √(1/3)."""
    mean, variance = np.array([2.0, 2.0, 2.0, 0.0]), np.array([3.0, 2.0, 1.0, 0.0])
    np.testing.assert_allclose(noise_ceiling(mean, variance), [np.sqrt(1 / 3), 0, 0, np.nan])

"""Genes beyond chance: the false discovery rate holds; scores by abundance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from virchow_st.metrics import discovery
from virchow_st.metrics.discovery import by_decile, predicted_genes

Draw = Callable[[np.random.Generator, int, int], np.ndarray]


def alike(rng: np.random.Generator, n: int, G: int) -> np.ndarray:
    return rng.normal(0.0, 0.01, (n, G))


def unlike(rng: np.random.Generator, n: int, G: int) -> np.ndarray:
    """Genes whose null correlations differ in spread tenfold, and have means above 0."""
    seed = np.random.default_rng(1)
    spread = 0.01 * np.exp(seed.uniform(0, np.log(10), G))
    return spread * (seed.normal(0.3, 1.0, G) + rng.normal(size=(n, G)))


def skewed(rng: np.random.Generator, n: int, G: int) -> np.ndarray:
    return 0.01 * (rng.gamma(2.0, 1.0, (n, G)) - 2.0)


def together(rng: np.random.Generator, n: int, G: int) -> np.ndarray:
    """Genes that share eight factors."""
    weights = np.random.default_rng(2).normal(size=(8, G)) / np.sqrt(8)
    return 0.01 * (0.7 * rng.normal(size=(n, 8)) @ weights + 0.7 * rng.normal(size=(n, G)))


@pytest.mark.parametrize("draw", [alike, unlike, skewed, together])
@pytest.mark.parametrize("n_draws", [4, 10])
def test_the_false_discovery_rate_holds(draw: Draw, n_draws: int) -> None:
    """On average over simulated slides of 2,000 genes, a fifth of them predicted."""
    shares, found = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        nulls = draw(rng, n_draws + 1, 2000)
        pcc = nulls[0].copy()
        pcc[:400] += 0.2
        predicted = predicted_genes(pcc, nulls[1:], q=0.05).predicted
        shares.append(predicted[400:].sum() / max(predicted.sum(), 1))
        found.append(predicted[:400].mean())
    assert np.mean(shares) < 0.06
    assert np.mean(found) > 0.5


@pytest.mark.parametrize("draw", [alike, unlike, skewed])
def test_without_any_prediction_hardly_a_slide_has_one(draw: Draw) -> None:
    """If nothing is predicted, every discovery is false; one happens on 5 % of slides."""
    n = 0
    for seed in range(200):
        nulls = draw(np.random.default_rng(seed), 7, 500)
        n += predicted_genes(nulls[0], nulls[1:], q=0.05).n_predicted > 0
    assert n < 200 * 0.05 + 3 * np.sqrt(200 * 0.05 * 0.95)


def test_undefined_genes_are_not_tested() -> None:
    rng = np.random.default_rng(0)
    pcc, nulls = rng.normal(0.5, 0.01, 50), rng.normal(0.0, 0.01, (5, 50))
    pcc[0], nulls[2, 1] = np.nan, np.nan
    found = predicted_genes(pcc, nulls)
    assert (found.n_predicted, found.n_tested) == (48, 48)
    assert not found.predicted[:2].any()
    assert np.isnan(found.q_value[:2]).all()
    nothing = predicted_genes(np.full(3, np.nan), np.zeros((3, 3)))
    assert (nothing.n_predicted, nothing.n_tested) == (0, 0)


def test_equal_correlations_are_no_discovery() -> None:
    found = predicted_genes(np.zeros(20), np.zeros((4, 20)))
    assert found.n_predicted == 0
    assert (found.q_value == 1).all()


def test_q_values_are_benjamini_and_hochbergs() -> None:
    p = np.random.default_rng(0).beta(0.3, 2.0, 100)
    np.testing.assert_allclose(discovery._q_values(p), false_discovery_control(p), rtol=1e-12)


@pytest.mark.parametrize(
    ("nulls", "q", "message"),
    [
        (np.zeros((2, 4)), 0.05, "at least 3 draws; got 2"),
        (np.zeros((5, 3)), 0.05, "expected shape"),
        (np.zeros(4), 0.05, "expected shape"),
        (np.zeros((5, 4)), 1.0, "q: expected a rate"),
    ],
)
def test_wrong_input_is_refused(nulls: np.ndarray, q: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predicted_genes(np.zeros(4), nulls, q)


def test_deciles_hold_equally_many_genes() -> None:
    rng = np.random.default_rng(0)
    abundance = rng.lognormal(-3, 2, 1007)
    abundance[:5] = 0
    values = rng.normal(size=1007)
    values[5:200] = np.nan
    groups = by_decile(values, abundance)
    edges = np.quantile(abundance[5:], np.linspace(0, 1, 11))
    assert groups.n_genes.sum() == 1007 - 200
    assert (np.diff(groups.abundance) > 0).all()
    assert ((edges[:-1] < groups.abundance) & (groups.abundance < edges[1:])).all()
    order = np.argsort(abundance)[5:]
    last = values[order[-100:]]
    last = last[~np.isnan(last)]
    assert groups.n_genes[-1] == len(last)
    assert groups.mean[-1] == pytest.approx(last.mean())
    assert groups.median[-1] == pytest.approx(np.median(last))


def test_deciles_of_few_genes() -> None:
    groups = by_decile(np.array([0.5, np.nan]), np.array([1.0, 2.0]))
    assert groups.n_genes.tolist() == [1] + [0] * 9
    assert np.isnan(groups.mean[1:]).all()
    with pytest.raises(ValueError, match="one of each per gene"):
        by_decile(np.zeros(3), np.zeros(2))

"""Poisson factorisation: equal to its reference, monotone, and it finds what was planted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.linalg import subspace_angles
from scipy.special import gammaln
from scipy.stats import poisson

from virchow_st.kernels.factorise_reference import multiplicative_steps
from virchow_st.training import choose_factors
from virchow_st.training import factorise as module
from virchow_st.training.choose_factors import choose_n_factors
from virchow_st.training.factor_start import start_loadings
from virchow_st.training.factor_steps import FactorModel, single_factor
from virchow_st.training.factorise import factorise
from virchow_st.training.rows import SparseRows


def draw(n: int = 300, G: int = 60, K: int = 4, umis: float = 200.0, seed: int = 0):  # type: ignore[no-untyped-def]
    """Counts of rows that are mixtures of programmes; the exposures and the programmes (G, K)."""
    rng = np.random.default_rng(seed)
    programmes = rng.dirichlet(np.full(G, 0.3), K).T
    exposure = rng.integers(32, 65, n).astype(float)
    depth = rng.gamma(4.0, umis / 4 / 64, n)
    mix = rng.dirichlet(np.full(K, 0.4), n)
    counts = rng.poisson((exposure * depth)[:, None] * mix @ programmes.T)
    return counts, exposure, programmes


def rows(**of: float) -> SparseRows:
    counts, exposure, _ = draw(**of)  # type: ignore[arg-type]
    return SparseRows.from_dense(counts, exposure)


@pytest.mark.parametrize("n_factors", [1, 3, 7])
@pytest.mark.parametrize("prior", [0.0, 2.0])
def test_steps_equal_the_references(n_factors: int, prior: float) -> None:
    counts, exposure, _ = draw()
    sparse = SparseRows.from_dense(counts, exposure)
    loadings = want_loadings = start_loadings(sparse, n_factors, 5)
    factors = want_factors = np.random.default_rng(0).gamma(1.0, size=(len(counts), n_factors))
    with ThreadPoolExecutor(2) as pool:
        model = FactorModel(sparse, prior, pool)
        for _ in range(8):
            step = model.step(factors, loadings)
            factors, loadings = step.factors, step.loadings
    want_factors, want_loadings = multiplicative_steps(
        counts, exposure, want_factors, want_loadings, prior, 8
    )
    # Values below 1e-7 may be at the floor, which the reference does not have.
    for got, want in ((factors, want_factors), (loadings, want_loadings)):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-7)
        np.testing.assert_allclose(got[want > 1e-4], want[want > 1e-4], rtol=1e-10)


@pytest.mark.parametrize("prior", [0.0, 2.0])
def test_likelihood_is_poissons_and_the_objective_never_falls(prior: float) -> None:
    counts, exposure, _ = draw()
    sparse = SparseRows.from_dense(counts, exposure)
    found = factorise(sparse, 6, seed=0, n_steps=100, tolerance=0, prior=prior)
    assert 60 < len(found.objective) <= 101
    gains = np.diff(found.objective)
    assert gains.min() >= -1e-12 * abs(found.objective[-1])
    assert gains[0] > 0
    rate = exposure[:, None] * found.factors @ found.loadings.T
    want = (counts * np.log(rate) - rate).sum()
    logpmf = poisson.logpmf(counts, rate).sum() + gammaln(counts + 1).sum()
    assert found.log_likelihood[-1] == pytest.approx(want, rel=1e-9)
    assert found.log_likelihood[-1] == pytest.approx(logpmf, rel=1e-9)
    assert (found.objective <= found.log_likelihood + 1e-6).all()
    if prior == 0:
        np.testing.assert_array_equal(found.objective, found.log_likelihood)


def test_longer_steps_reach_further() -> None:
    """Than as many steps of plain EM."""
    found = factorise(rows(), 6, seed=0, n_steps=40, tolerance=0, prior=0)
    sparse = rows()
    factors = np.repeat(sparse.totals[:, None] / sparse.exposure[:, None] / 6, 6, axis=1)
    loadings = start_loadings(sparse, 6, 0)
    with ThreadPoolExecutor(1) as pool:
        model = FactorModel(sparse, 0, pool)
        for _ in range(41):
            step = model.step(factors, loadings)
            factors, loadings = step.factors, step.loadings
    single = single_factor(sparse)
    left = found.log_likelihood[-1] - step.log_likelihood
    assert left > 0.005 * (step.log_likelihood - single)


def test_the_prior_helps_with_counts_that_were_held_out() -> None:
    counts, exposure, _ = draw(n=800, G=2000, umis=150)
    fitted, held_out = SparseRows.from_dense(counts, exposure).thinned(
        0.8, np.random.default_rng(0)
    )
    score = {}
    for prior in (0.0, 2.0):
        found = factorise(fitted, 4, seed=0, prior=prior)
        score[prior] = choose_factors._log_likelihood(held_out, found.factors, found.loadings)
    assert score[2.0] > score[0.0] + 0.01 * held_out.count.sum()


def test_scale_and_order_are_fixed() -> None:
    sparse = rows()
    found = factorise(sparse, 5, seed=1)
    np.testing.assert_allclose(found.loadings.sum(0), 1.0, rtol=1e-12)
    umis = sparse.exposure @ found.factors
    assert (np.diff(umis) <= 0).all()
    assert umis.sum() == pytest.approx(sparse.count.sum(), rel=1e-2)
    assert min(found.loadings.min(), found.factors.min()) > 0


def test_planted_programmes_are_found() -> None:
    counts, exposure, programmes = draw(n=800, G=100, K=5, umis=20_000)
    found = factorise(SparseRows.from_dense(counts, exposure), 5, seed=0, n_steps=200, tolerance=0)
    assert np.rad2deg(subspace_angles(found.loadings, programmes)).max() < 2
    overlap = np.minimum(found.loadings[:, :, None], programmes[:, None]).sum(0)
    assert sorted(overlap.argmax(0)) == list(range(5))
    assert overlap.max(0).min() > 0.9


@pytest.mark.parametrize("n_threads", [2, 5])
def test_the_number_of_threads_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, n_threads: int
) -> None:
    found = []
    for n in (1, n_threads):
        monkeypatch.setattr(module, "core_count", lambda n=n: n)
        found.append(factorise(rows(), 4, seed=0, n_steps=20))
    for name in ("loadings", "factors", "log_likelihood", "objective"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))


def test_the_seed_fixes_the_result() -> None:
    one, same, other = (factorise(rows(), 8, seed=s, n_steps=3).loadings for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_rows_and_genes_without_counts() -> None:
    counts, exposure, _ = draw()
    counts[:2], counts[-1], counts[:, 0], counts[:, -3:] = 0, 0, 0, 0
    sparse = SparseRows.from_dense(counts, exposure)
    found = factorise(sparse, 4, seed=0)
    assert found.loadings[[0, -1]].max() < 0.6 / counts.sum()
    assert found.factors[[0, 1, -1]].max() < 1e-9
    inner = SparseRows.from_dense(counts[2:-1, 1:-3], exposure[2:-1])
    found, alone = (factorise(x, 4, seed=0, prior=0) for x in (sparse, inner))
    assert found.loadings[[0, -1]].max() < 1e-9
    assert found.log_likelihood[-1] == pytest.approx(alone.log_likelihood[-1], rel=1e-3)


@pytest.mark.parametrize(("n", "G"), [(3, 60), (300, 5), (1, 1)])
def test_more_factors_than_there_is_to_find(n: int, G: int) -> None:
    counts, exposure, _ = draw(n=n, G=G)
    found = factorise(SparseRows.from_dense(counts, exposure), 10, seed=0)
    assert found.loadings.shape == (G, 10)
    assert np.isfinite(found.loadings).all()
    assert np.isfinite(found.factors).all()
    assert np.diff(found.objective).min() >= 0


def test_it_stops_when_steps_add_little() -> None:
    long = factorise(rows(), 4, seed=0, n_steps=100, tolerance=0).objective
    short = factorise(rows(), 4, seed=0, n_steps=100, tolerance=1e-3).objective
    n = len(short)
    assert 6 < n < len(long)
    np.testing.assert_array_equal(short, long[:n])
    gained = (long[5:] - long[:-5]) / 5
    few = gained < 1e-3 * np.abs(long[5:] - single_factor(rows()))
    assert np.flatnonzero(few)[0] == n - 6


def test_a_single_factor_is_the_gene_means() -> None:
    sparse = rows()
    found = factorise(sparse, 1, seed=0, prior=0, n_steps=20)
    np.testing.assert_allclose(
        found.loadings[:, 0], sparse.gene_totals / sparse.count.sum(), atol=1e-9
    )
    np.testing.assert_allclose(found.factors[:, 0], sparse.totals / sparse.exposure, rtol=1e-9)
    assert found.log_likelihood[-1] == pytest.approx(single_factor(sparse), rel=1e-10)


def test_what_cannot_be_factorised_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 and 0; got 0"):
        factorise(rows(), 0, seed=0)
    with pytest.raises(ValueError, match="got 2 and -1"):
        factorise(rows(), 2, seed=0, prior=-1)
    with pytest.raises(ValueError, match="at least one UMI"):
        factorise(SparseRows.from_dense(np.zeros((4, 3), int), np.ones(4)), 2, seed=0)


def test_the_start_has_a_group_for_every_kind_of_row() -> None:
    kinds = np.random.default_rng(0).dirichlet(np.full(200, 0.1), 6)
    kind = np.arange(600) % 6
    counts = np.random.default_rng(1).poisson(100 * kinds[kind])
    profiles = start_loadings(SparseRows.from_dense(counts, np.full(600, 64.0)), 6, 0)
    overlap = np.minimum(profiles[:, :, None], kinds.T[:, None]).sum(0)
    assert sorted(overlap.argmax(0)) == list(range(6))
    assert overlap.max(0).min() > 0.8
    assert profiles.min() > 0


def test_held_out_counts_choose_the_number_of_programmes() -> None:
    choice = choose_n_factors(rows(n=1000, K=4, umis=500), candidates=(30, 1, 2, 4, 24), seed=0)
    assert choice.n_factors == 4
    assert choice.candidates == (1, 2, 4, 24, 30)
    assert abs(choice.gains[0]) < 1e-3
    assert choice.gains[1] < 0.9 * choice.gains[2]
    assert choice.gains[3] < 0.98 * choice.gains[2]
    assert np.isnan(choice.gains[4])  # not tried, because 24 are worse than 4


def test_without_programmes_the_fewest_factors_are_chosen() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(4, 1, (500, 1)) * rng.gamma(1, 1, 60))
    choice = choose_n_factors(SparseRows.from_dense(counts, np.full(500, 64.0)), (2, 4, 8), 0)
    assert choice.n_factors == 2
    assert choice.gains[0] <= 0


def test_of_many_rows_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(choose_factors, "MOST_ROWS", 100)
    monkeypatch.setattr(
        choose_factors,
        "factorise",
        lambda counts, *args: seen.append(len(counts)) or factorise(counts, *args),
    )
    choose_n_factors(rows(), candidates=(2, 3), seed=0)
    assert seen == [100, 100]

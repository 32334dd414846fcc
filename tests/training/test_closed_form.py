"""The regression that `fusion` starts from: correct, and fitted on training patches only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from tiny_store import write_store
from tiny_training import PATIENTS, Watched, few_steps, opened, paths, tiny_config, two_patients

from virchow_st.training import closed_form
from virchow_st.training.closed_form import poisson_regression, regress_on_tokens
from virchow_st.training.statistics import training_statistics
from virchow_st.training.train import train


def draw(n: int = 3000, D: int = 6, G: int = 4, seed: int = 0):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, D))
    w, b = rng.normal(0, 0.5, (D, G)), rng.normal(0, 0.3, G)
    n_bins, rate = rng.integers(32, 65, n).astype(float), rng.uniform(0.01, 0.2, G)
    umis = rng.poisson(n_bins[:, None] * rate * np.exp(x @ w + b)).astype(float)
    return x, umis, n_bins, rate, w, b


def test_it_finds_what_counts_were_drawn_from() -> None:
    x, umis, n_bins, rate, w, b = draw()
    found_w, found_b = poisson_regression(x, umis, n_bins, rate, penalty=1e-6, n_steps=40)
    np.testing.assert_allclose(found_w, w, atol=0.05)
    np.testing.assert_allclose(found_b, b, atol=0.05)


@pytest.mark.parametrize("penalty", [0.01, 0.5])
def test_it_is_the_minimum_that_a_general_optimiser_finds(penalty: float) -> None:
    x, umis, n_bins, rate, *_ = draw(400)
    found_w, found_b = poisson_regression(x, umis, n_bins, rate, penalty, n_steps=60)
    for g in range(umis.shape[1]):

        def objective(at, g=g):  # type: ignore[no-untyped-def]
            log_ratio = x @ at[:-1] + at[-1]
            expected = n_bins * rate[g] * np.exp(log_ratio)
            fit = (expected - umis[:, g] * log_ratio).sum() / (n_bins.sum() * rate[g])
            return fit + penalty * (at[:-1] ** 2).sum() / 2

        best = minimize(objective, np.zeros(7), options={"gtol": 1e-9}).x
        np.testing.assert_allclose([*found_w[:, g], found_b[g]], best, atol=1e-3)


def test_it_stays_finite_where_there_is_little_to_learn_from() -> None:
    """Fewer tokens than channels, a gene without counts, a constant channel."""
    x, umis, n_bins, rate, *_ = draw(5, D=20)
    x[:, 3], umis[:, 1] = 0.0, 0.0
    w, b = poisson_regression(x, umis, n_bins, rate, closed_form.PENALTY)
    assert np.isfinite(w).all()
    assert np.isfinite(b).all()
    assert not w[3].any()


@pytest.mark.parametrize("loss", ["poisson", "nb", "mse"])
def test_only_training_patches_are_read(tmp_path: Path, loss: str) -> None:
    dataset, split = opened(two_patients(tmp_path))
    assert split.validation
    assert split.test
    watched = Watched(dataset.stores, dataset.panel)
    watched.allowed = split.train
    statistics = training_statistics(watched, split.train)
    found = regress_on_tokens(watched, split.train, statistics, loss, 0)
    assert found.weights.shape == (8, 3)
    assert np.isfinite(found.weights).all()
    with pytest.raises(AssertionError, match="does not train"):
        regress_on_tokens(watched, split.validation, statistics, loss, 0)


def test_another_test_patient_makes_the_same_run(tmp_path: Path) -> None:
    """Of `fusion` from its start to its end, bit for bit."""
    kept = []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        for path, patient, n, of in zip(paths(folder), PATIENTS, (5, 4), (0, seed), strict=True):
            write_store(Path(path), patient, n, n_genes=4, seed=of)
        config = tiny_config(paths(folder), decoder="fusion", optimizer="muon", epochs=1)
        with few_steps(1):
            train(folder / "run", config)
        kept.append((folder / "run/checkpoints/last/tensors.safetensors").read_bytes())
    assert kept[0] == kept[1]


def test_umis_and_bins_are_those_of_tissue(tmp_path: Path) -> None:
    """Against dense counts, token by token."""
    dataset, split = opened(two_patients(tmp_path))
    statistics = training_statistics(dataset, split.train)
    member, rng = split.train[0], np.random.default_rng(0)
    x, umis, n_bins = closed_form._of_patch(dataset, member, statistics, rng, 256)
    patch = dataset.patch(member)
    genes = dataset.panel.indices(dataset.stores[member.store])
    counts = patch.dense_counts(genes) * patch.tissue_mask
    at = 0
    for row in range(16):
        for col in range(16):
            bins = np.s_[8 * row : 8 * row + 8, 8 * col : 8 * col + 8]
            n = patch.tissue_mask[bins].sum()
            if n < 32:
                continue
            assert n_bins[at] == n
            np.testing.assert_array_equal(umis[at], counts[:, *bins].sum((1, 2)))
            token = (patch.tokens[row, col] - statistics.token_mean) / statistics.token_std
            np.testing.assert_allclose(x[at], np.clip(token, -8, 8), rtol=1e-6)
            at += 1
    assert at == len(x)


def test_of_many_tokens_some_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, split = opened(two_patients(tmp_path))
    statistics = training_statistics(dataset, split.train)
    monkeypatch.setattr(closed_form, "_MOST_TOKENS", 64)
    found = [regress_on_tokens(dataset, split.train, statistics, "poisson", s) for s in (0, 0, 1)]
    assert np.array_equal(found[0].weights, found[1].weights)
    assert not np.array_equal(found[0].weights, found[2].weights)


def test_a_resumed_run_has_no_need_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(two_patients(tmp_path), decoder="fusion", epochs=2)
    with few_steps(1):
        train(tmp_path / "run", replace(config, epochs=2))
        monkeypatch.setattr("virchow_st.training.start.regress_on_tokens", None)
        train(tmp_path / "run", config, resume=True)

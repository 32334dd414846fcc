"""H&E as prior: weighed by held-out counts, never of a run that knows the patient."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_place import Answer
from denoised import patchwork
from scipy.ndimage import gaussian_filter

import virchow_st
from virchow_st.denoise.estimate import estimate
from virchow_st.denoise.fit import Recipe
from virchow_st.denoise.prior import Prior, PriorWeights
from virchow_st.denoise.run_prior import load_other
from virchow_st.denoise.slide import SlideCounts
from virchow_st.errors import ConfigError
from virchow_st.store.reader import open_store


@pytest.fixture(scope="module")
def sparse() -> tuple[SlideCounts, np.ndarray]:
    """Half a UMI per bin, and the true rates (n, G)."""
    return patchwork(96, 0.5)


def prior_of(slide: SlideCounts, maps: np.ndarray) -> Prior:
    loadings = np.full((len(slide.panel), maps.shape[1]), np.nan)
    return Prior.of_one(maps.astype(np.float32), maps[:0].astype(np.float32), loadings, "run")


def score(slide: SlideCounts, truth: np.ndarray, prior: Prior | None) -> tuple[float, Recipe]:
    """Share of the deviance of the true rates from the genes' means that is left."""
    found = estimate(slide, 3, 0, prior=prior)
    rates = found.rates.factors @ found.rates.loadings.T

    def deviance(x: np.ndarray) -> float:
        return float((truth * np.log(truth / x) - truth + x).sum())

    return deviance(rates) / deviance(np.broadcast_to(truth.mean(0), truth.shape)), found.recipe


def test_a_prior_that_fits_helps_and_one_that_does_not_loses_its_weight(
    sparse: tuple[SlideCounts, np.ndarray],
) -> None:
    slide, truth = sparse
    rng = np.random.default_rng(0)
    # Maps of a run: the true rates, smoothed and with smooth errors, not of the slide's level.
    maps = truth[:, np.argsort(-truth.sum(0))[:10]]
    errors = np.exp(1.5 * gaussian_filter(rng.normal(size=(96, 96)), 3.0)).reshape(-1, 1)
    smooth = gaussian_filter(maps.reshape(96, 96, -1), (1, 1, 0)).reshape(maps.shape)
    good = prior_of(slide, 3 * smooth * errors)
    bad = prior_of(slide, rng.permutation(maps))
    (alone, _), (helped, with_good), (misled, with_bad) = (
        score(slide, truth, prior) for prior in (None, good, bad)
    )
    assert helped < 0.8 * alone
    assert misled < 1.02 * alone
    assert with_bad.weights is None or with_bad.weights.beta.mean() <= 0.25
    assert with_good.weights is not None
    assert with_good.weights.beta.mean() >= 0.5
    assert with_good.prior_gain > 0


def test_weights_follow_their_factors() -> None:
    loadings = np.random.default_rng(0).dirichlet(np.full(30, 0.1), 4).T
    weights = PriorWeights(loadings, np.array([0.0, 0.25, 0.5, 1.0]))
    order = [2, 0, 3, 1]
    assert weights.of(loadings[:, order]).tolist() == weights.beta[order].tolist()


def test_maps_are_combined_to_what_they_resemble() -> None:
    rng = np.random.default_rng(0)
    maps = rng.gamma(1.0, 1.0, (2000, 3))
    mix = np.array([[2.0, 0.0, 0.0], [0.0, 0.5, 1.0]])
    none = np.empty((0, 3))
    prior = Prior.of_one(maps.astype(np.float32), none.astype(np.float32), none, "run")
    (found,) = prior.combined((maps @ mix.T).astype(np.float32), seed=0)
    np.testing.assert_allclose(found, mix, atol=0.02)


def test_each_part_is_combined_by_itself() -> None:
    rng = np.random.default_rng(0)
    part = np.arange(4000) % 2
    maps = rng.gamma(1.0, 1.0, (4000, 3)).astype(np.float32)
    mix = np.array([[[2.0, 0.0, 0.0], [0.0, 0.5, 1.0]], [[0.0, 0.0, 1.0], [3.0, 0.0, 0.0]]])
    factors = np.einsum("nj,nkj->nk", maps, mix[part]).astype(np.float32)
    prior = Prior(maps, maps[:2], part, part[:2], np.ones((2, 5, 3)), "folds")
    found = prior.combined(factors, seed=0)
    np.testing.assert_allclose(found, mix, atol=0.03)
    beta = np.array([1.0, 0.5])
    for k in range(2):
        np.testing.assert_allclose(prior.guide(mix, beta)(k), factors[:, k] ** beta[k], rtol=1e-5)
        np.testing.assert_allclose(
            prior.guide_missing(mix, beta)(k), factors[:2, k] ** beta[k], rtol=1e-5
        )
    hidden = prior.hiding(np.array([3, 5]), np.array([0]))
    np.testing.assert_array_equal(hidden.part, [1, 1])
    np.testing.assert_array_equal(hidden.missing, maps[:1])
    np.testing.assert_allclose(prior.rate(0), maps.sum(1), rtol=1e-5)


def test_run_of_other_patients_from_the_command_line(
    vst: Callable[..., Answer], tiny_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "T.zarr"
    options = "--run", tiny_run, "--factors", 2, "--score"
    answer = vst("denoise", tiny_run.parent / "T.vst", "--out", out, *options)
    assert answer.code == 0, answer.err
    assert "H&E alone" in answer.out
    assert "counts alone" in answer.out
    about = virchow_st.open_field(out).provenance
    assert about["prior"]["run"] == tiny_run.name
    assert len(about["prior"]["weights"]) == 2
    at = about["scores"]["scales"]["8"]
    assert at["denoised"]["d2_poisson"] > at["counts"]["d2_poisson"] - 0.02
    assert at["prior"]["d2_poisson"] is not None


def test_a_run_that_knows_the_patient_is_refused(
    vst: Callable[..., Answer], tiny_run: Path, tmp_path: Path
) -> None:
    store = tiny_run.parent / "A.vst"
    answer = vst("denoise", store, "--out", tmp_path / "A.zarr", "--run", tiny_run)
    assert answer.code == 2
    assert "expected a run of other patients" in answer.err
    assert "trained on patient A; train one with --test-patient A" in answer.err
    assert not list(tmp_path.iterdir())


def test_a_renamed_patient_is_known_by_the_slide(tiny_run: Path, tmp_path: Path) -> None:
    same = tmp_path / "other.vst"
    shutil.copytree(tiny_run.parent / "A.vst", same)
    manifest = json.loads((same / "store.json").read_text())
    (same / "store.json").write_text(json.dumps(manifest | {"patient": "Z"}))
    with pytest.raises(ConfigError, match="trained on this slide, as patient A"):
        load_other(tiny_run, open_store(same))

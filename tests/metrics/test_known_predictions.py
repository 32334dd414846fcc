"""Scores of predictions whose scores are known in advance."""

from __future__ import annotations

import numpy as np
import pytest
from scored_patches import MEAN_RATE, G, Patch, draw, score

from virchow_st.metrics import ScaleAccumulator
from virchow_st.metrics.deviance import RATE_FLOOR
from virchow_st.types import SCALES_UM


def constant(rate: np.ndarray) -> np.ndarray:
    return np.broadcast_to(MEAN_RATE.astype(np.float32)[:, None, None], rate.shape)


@pytest.mark.parametrize("scale_um", SCALES_UM)
def test_the_true_rate_reaches_the_ceiling(slide: list[Patch], scale_um: int) -> None:
    scores = score(slide, scale_um)
    np.testing.assert_allclose(scores.pcc, scores.pcc_ceiling, atol=0.02)
    summary = scores.summary()
    assert summary["pcc_of_ceiling"] == pytest.approx(1.0, abs=0.03)
    assert summary["calibration"] == pytest.approx(1.0, abs=0.02)
    assert (scores.d2_poisson > 0).all()
    assert (scores.pcc_ceiling > 0.1).all()


def test_the_ceiling_rises_with_the_scale(slide: list[Patch]) -> None:
    ceilings = [score(slide, um).summary()["pcc_ceiling"] for um in SCALES_UM]
    assert ceilings == sorted(ceilings)


@pytest.mark.parametrize("scale_um", SCALES_UM)
def test_a_shuffled_prediction_scores_nothing(slide: list[Patch], scale_um: int) -> None:
    """Its r has a standard error near the correlation length over the side of the slide."""
    scores = score(slide, scale_um)
    assert abs(scores.summary()["pcc_shuffled"]) < 0.1
    assert scores.summary()["pcc_shuffled"] < 0.3 * scores.summary()["pcc"]


@pytest.mark.parametrize("scale_um", SCALES_UM)
def test_a_gene_mean_scores_nothing_but_pooled(slide: list[Patch], scale_um: int) -> None:
    scores = score(slide, scale_um, constant)
    np.testing.assert_array_equal(scores.pcc, 0.0)
    np.testing.assert_array_equal(scores.pcc_shuffled, 0.0)
    np.testing.assert_allclose(scores.d2_poisson, 0.0, atol=1e-6)
    np.testing.assert_allclose(scores.ssim, scores.ssim_all_zero, rtol=1e-12)
    np.testing.assert_array_equal(scores.spearman, 0.0)
    np.testing.assert_array_equal(scores.auroc[:2], 0.5)
    np.testing.assert_allclose(scores.auprc, scores.auprc_prevalence, rtol=1e-12)
    assert np.isnan(scores.morans_i_predicted).all()
    np.testing.assert_allclose(scores.morans_i_residual, scores.morans_i_observed, atol=1e-6)
    assert scores.pcc_pooled > 0.2  # what makes the pooled figure a poor one


@pytest.mark.parametrize("scale_um", SCALES_UM)
def test_the_true_rate_leaves_no_pattern_behind(slide: list[Patch], scale_um: int) -> None:
    scores = score(slide, scale_um)
    n = scores.n_bins
    assert (scores.morans_i_predicted > scores.morans_i_observed).all()
    assert (np.abs(scores.morans_i_residual) < 5 / np.sqrt(2 * n)).all()
    assert (scores.spearman > 0.1).all()
    assert np.nanmin(scores.auroc) > 0.55
    assert np.nanmin(scores.auprc - scores.auprc_prevalence) > 0
    assert (scores.d2_poisson_test_mean > 0).all()
    assert (scores.d2_poisson_test_mean <= scores.d2_poisson + 1e-12).all()


@pytest.mark.parametrize("scale_um", SCALES_UM)
def test_thinning_gives_the_closed_forms_ceiling(slide: list[Patch], scale_um: int) -> None:
    scores = score(slide, scale_um)
    np.testing.assert_allclose(scores.pcc_ceiling_thinned, scores.pcc_ceiling, atol=0.04)
    summary = scores.summary()
    assert summary["pcc_ceiling_thinned"] == pytest.approx(summary["pcc_ceiling"], abs=0.02)


def test_counts_as_a_prediction_are_perfect(slide: list[Patch]) -> None:
    accumulator = ScaleAccumulator(G, 8, MEAN_RATE)
    for _, counts, mask in slide[:3]:
        accumulator.update(counts.astype(np.float32), counts, mask)
    scores = accumulator.compute()
    for name in ("pcc", "ssim", "d2_poisson", "d2_poisson_test_mean", "auroc", "auprc"):
        value = getattr(scores, name)
        np.testing.assert_allclose(value[~np.isnan(value)], 1.0, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(scores.spearman, 1.0, atol=1e-9)
    np.testing.assert_array_equal(scores.calibration, 1.0)
    np.testing.assert_allclose(scores.morans_i_predicted, scores.morans_i_observed)
    assert np.isnan(scores.morans_i_residual).all()


def test_a_constant_that_is_not_the_mean_pays_for_its_level(slide: list[Patch]) -> None:
    scores = score(slide[:3], 4, lambda rate: np.full_like(rate, 0.5))
    for name in ("pcc", "spearman"):
        np.testing.assert_array_equal(getattr(scores, name), 0.0)
    assert (scores.d2_poisson < 0).all()
    assert (scores.calibration > 1).all()


def test_negative_rates_are_scored() -> None:
    """Squared error promises no positive rate: the deviance floors it, the correlation does not."""
    patches = draw(1)
    scores = score(patches, 2, lambda rate: rate - np.float32(0.2))
    np.testing.assert_allclose(scores.pcc, score(patches, 2).pcc, atol=1e-6)
    assert np.isfinite(scores.d2_poisson).all()
    assert (scores.d2_poisson[:2] < 0).all()


def test_a_rate_of_zero_costs_the_floor() -> None:
    counts = np.zeros((1, 2, 2), np.uint16)
    counts[0, 0, 0] = 1
    train_rate = np.array([0.25])
    accumulator = ScaleAccumulator(1, 2, train_rate)
    rate = np.zeros((1, 2, 2), np.float32)
    accumulator.update(rate, counts, np.ones((2, 2), np.bool_), None)
    deviance = 2 * (np.log(1 / RATE_FLOOR) - 1 + 4 * RATE_FLOOR)
    want = 1 - deviance / (2 * np.log(4))
    assert accumulator.compute().d2_poisson[0] == pytest.approx(want, rel=1e-12)

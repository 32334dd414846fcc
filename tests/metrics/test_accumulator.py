"""`ScaleAccumulator`: which bins it uses, what it leaves undefined, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from scored_patches import MEAN_RATE, G, Patch, draw, score

from virchow_st.metrics import ScaleAccumulator
from virchow_st.types import SCALES_UM


@pytest.mark.parametrize("side", [1, 3])
def test_a_slide_of_a_few_bins_is_no_crash(side: int) -> None:
    """Too few for a window, and a single one for neighbours: undefined, and the rest as usual."""
    mask = np.zeros((128, 128), np.bool_)
    mask[40 : 40 + side, 50 : 50 + side] = True
    (rate, counts, _), *_ = draw(1)
    counts[0, 41, 51] = counts[0].max() + 1
    accumulator = ScaleAccumulator(G, 2, MEAN_RATE)
    accumulator.update(rate, counts, mask, rate)
    scores = accumulator.compute()
    assert scores.n_bins == side * side
    assert np.isnan(scores.ssim).all()
    assert np.isnan(scores.morans_i_predicted).all() == (side == 1)
    assert np.isnan(scores.pcc[0]) == (side == 1)
    json.dumps(scores.summary(), allow_nan=False)


def test_the_same_patch_is_split_the_same_way_in_any_company(slide: list[Patch]) -> None:
    found = []
    for patches in (slide[:3], slide[2::-1]):
        accumulator = ScaleAccumulator(G, 4, MEAN_RATE)
        for rate, counts, mask in patches:
            accumulator.update(rate, counts, mask)
        found.append(accumulator.compute().pcc_ceiling_thinned)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 0.5])
def test_counts_that_are_none_are_refused(bad: float) -> None:
    (rate, counts, mask), *_ = draw(1, tissue=0.9)
    accumulator = ScaleAccumulator(G, 8, MEAN_RATE)
    wrong = counts.astype(np.float32)
    wrong[1, 0, 0] = bad  # no tissue
    accumulator.update(rate, wrong, mask)
    wrong[1, 100, 100] = bad
    with pytest.raises(ValueError, match="whole numbers of at least 0 .* patch 1 of those given"):
        accumulator.update(rate, wrong, mask)
    assert accumulator.n_patches == 1


def test_a_block_that_is_not_there_is_refused() -> None:
    (rate, counts, mask), *_ = draw(1)
    accumulator = ScaleAccumulator(G, 2, MEAN_RATE, n_blocks=3)
    for block in (-1, 3):
        with pytest.raises(ValueError, match=f"block: expected 0 to 2; got {block}"):
            accumulator.update(rate, counts, mask, block=block)


def test_nothing_outside_the_tissue_is_used() -> None:
    patches = draw(2, seed=3, tissue=0.9)
    changed = [
        (np.where(m, rate, np.float32(np.nan)), np.where(m, counts, np.uint16(999)), m)
        for rate, counts, m in patches
    ]
    for scale_um in SCALES_UM:
        want, got = asdict(score(patches, scale_um)), asdict(score(changed, scale_um))
        for name, value in want.items():
            np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_the_order_of_the_patches_does_not_matter(slide: list[Patch]) -> None:
    forward, backward = (ScaleAccumulator(G, 8, MEAN_RATE) for _ in range(2))
    for a, patches in ((forward, slide), (backward, slide[::-1])):
        for rate, counts, mask in patches:
            a.update(rate, counts, mask, rate[:, ::-1])
    for name, value in asdict(forward.compute()).items():
        got = asdict(backward.compute())[name]
        np.testing.assert_allclose(got, value, rtol=1e-9, err_msg=name)


def test_counts_may_be_float32(slide: list[Patch]) -> None:
    as_float = [(rate, counts.astype(np.float32), mask) for rate, counts, mask in slide[:2]]
    want, got = score(slide[:2], 8), score(as_float, 8)
    np.testing.assert_array_equal(got.pcc, want.pcc)
    np.testing.assert_array_equal(got.ssim, want.ssim)


def test_a_gene_without_counts_is_left_out_and_reported() -> None:
    patches = draw(2, seed=4)
    for _, counts, _ in patches:
        counts[1] = 0
    scores = score(patches, 8)
    assert np.isnan(scores.pcc[1])
    assert np.isnan(scores.pcc_ceiling[1])
    assert np.isnan(scores.calibration[1])
    assert np.isfinite(scores.d2_poisson[1])
    summary = scores.summary()
    assert summary["n_genes_scored"] == G - 1
    assert summary["pcc"] == pytest.approx(np.delete(scores.pcc, 1).mean())
    assert summary["d2_poisson"] == pytest.approx(np.delete(scores.d2_poisson, 1).mean())


def test_one_patch_has_no_shuffled_null() -> None:
    scores = score(draw(1), 2)
    summary = scores.summary()
    assert np.isnan(scores.pcc_shuffled).all()
    assert summary["pcc_shuffled"] is None
    assert summary["ssim_shuffled"] is None
    assert summary["pcc"] == pytest.approx(np.mean(scores.pcc))
    assert scores.n_bins == 128 * 128


def test_nothing_to_score_is_null_and_still_json() -> None:
    """No tissue at all: every figure undefined, none a crash."""
    (rate, counts, mask), *_ = draw(1)
    accumulator = ScaleAccumulator(G, 16, MEAN_RATE)
    accumulator.update(rate, counts, np.zeros_like(mask), rate)
    summary = accumulator.compute().summary()
    assert summary.pop("n_genes_scored") == 0
    assert set(summary.values()) == {None}
    json.dumps(summary, allow_nan=False)
    assert ScaleAccumulator(G, 16, MEAN_RATE).compute().n_bins == 0


def test_summary_has_the_keys_of_metrics_json(slide: list[Patch]) -> None:
    summary = score(slide[:2], 8).summary()
    assert list(summary) == [
        *("n_genes_scored", "pcc", "pcc_fisher", "pcc_median", "pcc_pooled", "pcc_ceiling"),
        *("pcc_ceiling_thinned", "pcc_of_ceiling", "pcc_shuffled", "pcc_shifted"),
        *("pcc_partial", "pcc_partial_ceiling", "pcc_partial_shuffled", "spearman"),
        *("ssim", "ssim_shuffled", "ssim_shifted", "ssim_all_zero", "d2_poisson"),
        *("d2_poisson_test_mean", "auprc", "auprc_prevalence", "auroc", "calibration"),
        *("morans_i_predicted", "morans_i_observed", "morans_i_residual"),
    ]
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_prediction_that_is_not_finite_is_refused(bad: float) -> None:
    (rate, counts, mask), *_ = draw(1)
    accumulator = ScaleAccumulator(G, 8, MEAN_RATE)
    accumulator.update(rate, counts, mask, None)
    before = accumulator.compute()
    broken = rate.copy()
    broken[2, 5, 7] = bad
    with pytest.raises(ValueError, match=r"rate: expected finite .* first at index 2, in patch 1"):
        accumulator.update(broken, counts, mask, None)
    with pytest.raises(ValueError, match=r"shuffled_rate: expected finite .* first at index 2"):
        accumulator.update(rate, counts, mask, broken)
    for name, value in asdict(before).items():
        np.testing.assert_array_equal(asdict(accumulator.compute())[name], value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScaleAccumulator(2, 3, np.ones(2)), "multiple of 2"),
        (lambda: ScaleAccumulator(2, 4, np.ones(3)), r"shape \(2,\)"),
        (lambda: ScaleAccumulator(1, 4, np.array([np.nan])), "finite"),
        (lambda: ScaleAccumulator(1, 4, np.array([-1.0])), "at least 0"),
        (lambda: ScaleAccumulator(1, 4, np.array([1.0]), 0), "n_blocks: expected at least 1"),
    ],
)
def test_a_bad_start_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_shapes_that_do_not_fit_are_refused() -> None:
    (rate, counts, mask), *_ = draw(1)
    accumulator = ScaleAccumulator(G, 2, MEAN_RATE)
    with pytest.raises(ValueError, match=r"counts: expected shape \(4, 128, 128\)"):
        accumulator.update(rate, counts[:3], mask, rate)

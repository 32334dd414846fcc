"""The figures that theory, SciPy and scikit-image ask for, from one pass over patches."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy import ndimage, sparse
from scipy.stats import pearsonr, poisson, spearmanr
from skimage.metrics import structural_similarity

from virchow_st.kernels.moments import masked_moments
from virchow_st.kernels.reference import count_classes, rate_keys, rook_weights, scale_to_unit
from virchow_st.metrics import ScaleAccumulator, ScaleScores
from virchow_st.metrics.ceiling import noise_ceiling
from virchow_st.metrics.correlation import fisher_mean, pearson_from_moments
from virchow_st.metrics.deviance import RATE_FLOOR
from virchow_st.types import SCALES_UM

G = 4
MEAN_RATE = np.array([0.05, 0.1, 0.2, 0.4])

Patch = tuple[np.ndarray, np.ndarray, np.ndarray]


def draw(n_patches: int, seed: int = 0, tissue: float = 1.0) -> list[Patch]:
    """Patches of smooth rates, Poisson counts and a tissue mask; genes differ in their mean."""
    rng = np.random.default_rng(seed)
    patches = []
    for _ in range(n_patches):
        field = ndimage.gaussian_filter(rng.normal(size=(G, 128, 128)), (0, 6, 6), mode="wrap")
        field /= field.std((1, 2), keepdims=True)
        rate = (MEAN_RATE[:, None, None] * np.exp(0.8 * field - 0.32)).astype(np.float32)
        mask = np.ones((128, 128), np.bool_)
        mask[: int(128 * (1 - tissue))] = False
        patches.append((rate, rng.poisson(rate).astype(np.uint16), mask))
    return patches


def score(
    patches: list[Patch],
    scale_um: int,
    predict=lambda rate: rate,
    train_rate: np.ndarray = MEAN_RATE,
) -> ScaleScores:
    """Score predictions made from the true rates; the null is the next patch's prediction."""
    accumulator = ScaleAccumulator(len(train_rate), scale_um, train_rate)
    predictions = [predict(rate) for rate, _, _ in patches]
    for i, (_, counts, mask) in enumerate(patches):
        other = predictions[(i + 1) % len(patches)] if len(patches) > 1 else None
        accumulator.update(predictions[i], counts, mask, other)
    return accumulator.compute()


def constant(rate: np.ndarray) -> np.ndarray:
    return np.broadcast_to(MEAN_RATE.astype(np.float32)[:, None, None], rate.shape)


def pooled(x: np.ndarray, factor: int) -> np.ndarray:
    n, r, c = x.shape
    blocks = x.astype(np.float64).reshape(n, r // factor, factor, c // factor, factor)
    return blocks.sum((2, 4))


@pytest.fixture(scope="module")
def slide() -> list[Patch]:
    return draw(12)


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


def test_figures_equal_scipy_and_scikit_image() -> None:
    """Every per-gene figure from whole arrays, on part-tissue patches and noisy predictions."""
    patches, scale_um, f = draw(3, seed=1, tissue=0.9), 4, 2
    rng = np.random.default_rng(2)
    patches = [
        (rate * rng.gamma(4, 0.25, rate.shape).astype(np.float32), *rest) for rate, *rest in patches
    ]
    scores = score(patches, scale_um)

    mask = pooled(patches[0][2][None], f)[0] == f * f
    x = np.concatenate([pooled(rate, f)[:, mask] for rate, _, _ in patches], axis=1)
    y = np.concatenate([pooled(counts, f)[:, mask] for _, counts, _ in patches], axis=1)
    assert scores.n_bins == x.shape[1]
    want = np.array([pearsonr(a, b).statistic for a, b in zip(x, y, strict=True)])
    np.testing.assert_allclose(scores.pcc, want, atol=1e-6)
    assert scores.pcc_pooled == pytest.approx(pearsonr(x.ravel(), y.ravel()).statistic, abs=1e-6)
    np.testing.assert_allclose(scores.mean, y.mean(1), rtol=1e-12)
    np.testing.assert_allclose(scores.nonzero, (y > 0).mean(1), rtol=1e-12)
    np.testing.assert_allclose(scores.pcc_ceiling, noise_ceiling(y.mean(1), y.var(1)), atol=1e-9)
    np.testing.assert_allclose(scores.calibration, x.sum(1) / y.sum(1), rtol=1e-9)
    assert scores.summary()["calibration"] == pytest.approx(x.sum() / y.sum())

    null = np.broadcast_to(MEAN_RATE[:, None] * f * f, y.shape)
    log_likelihood = [poisson.logpmf(y, lam).sum(1) for lam in (y, x, null)]
    want = 1 - (log_likelihood[0] - log_likelihood[1]) / (log_likelihood[0] - log_likelihood[2])
    np.testing.assert_allclose(scores.d2_poisson, want, atol=1e-6)

    rows = mask.any(1)  # the mask is a rectangle, so plain scikit-image needs no masking
    for figure, shift in (("ssim", 0), ("ssim_shuffled", 1)):
        for g in range(G):
            values = []
            for i in range(3):
                a = scale_to_unit(pooled(patches[(i + shift) % 3][0], f)[g], mask)[rows]
                b = scale_to_unit(pooled(patches[i][1], f)[g], mask)[rows]
                values.append(structural_similarity(a, b, win_size=7, data_range=1))
            assert getattr(scores, figure)[g] == pytest.approx(np.mean(values), abs=1e-6)


def test_every_other_figure_equals_its_definition_on_whole_arrays() -> None:
    """Moran's I by the sparse matrix of neighbours, deviance against the test mean, the nulls."""
    patches, scale_um, f = draw(3, seed=7, tissue=0.8), 4, 2
    patches[1][2][10:40, 60:90] = False
    accumulator = ScaleAccumulator(G, scale_um, MEAN_RATE)
    other = [np.ascontiguousarray(rate[:, ::-1]) for rate, _, _ in patches]
    for (rate, counts, mask), shifted in zip(patches, other, strict=True):
        accumulator.update(rate, counts, mask, shifted_rate=shifted)
    scores = accumulator.compute()
    assert np.isnan(scores.pcc_shuffled).all()

    masks = [pooled(mask[None], f)[0] == f * f for _, _, mask in patches]
    x, y, z = (
        np.concatenate([pooled(a, f)[:, m] for a, m in zip(maps, masks, strict=True)], axis=1)
        for maps in ([p[0] for p in patches], [p[1] for p in patches], other)
    )
    W = sparse.block_diag([rook_weights(m) for m in masks]).tocsr()
    for values, figure in (
        (x, scores.morans_i_predicted),
        (y, scores.morans_i_observed),
        (y - x, scores.morans_i_residual),
    ):
        d = values - values.mean(1, keepdims=True)
        want = d.shape[1] / W.sum() * (d * (W @ d.T).T).sum(1) / (d * d).sum(1)
        np.testing.assert_allclose(figure, want, atol=1e-6)

    want = [pearsonr(a, b).statistic for a, b in zip(z, y, strict=True)]
    np.testing.assert_allclose(scores.pcc_shifted, want, atol=1e-6)
    null = np.broadcast_to(y.mean(1, keepdims=True), y.shape)
    log_likelihood = [poisson.logpmf(y, lam).sum(1) for lam in (y, x, null)]
    want = 1 - (log_likelihood[0] - log_likelihood[1]) / (log_likelihood[0] - log_likelihood[2])
    np.testing.assert_allclose(scores.d2_poisson_test_mean, want, atol=1e-6)
    want = [spearmanr(rate_keys(a), count_classes(b)).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(scores.spearman, want, atol=1e-6)


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
        *("pcc_ceiling_thinned", "pcc_of_ceiling", "pcc_shuffled", "pcc_shifted", "spearman"),
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

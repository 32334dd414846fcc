"""Bootstrap intervals have their nominal coverage; real differences are told from chance."""

from __future__ import annotations

import numpy as np
import pytest

from virchow_st.metrics import BlockSums, ScaleAccumulator, interval, paired

G, TRAIN_RATE = 3, np.full(3, 0.2)


def score(
    n_blocks: int = 20, noise: float = 0.0, seed: int = 0, signal: float = 1.0
) -> ScaleAccumulator:
    """One 16 × 16 patch a block; a prediction that knows ``signal`` of log λ and adds noise."""
    rng, other = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    accumulator = ScaleAccumulator(G, 2, TRAIN_RATE, n_blocks)
    for block in range(n_blocks):
        log_rate = rng.normal(np.log(0.2), 0.7, (G, 16, 16))
        counts = rng.poisson(np.exp(log_rate)).astype(np.uint16)
        rate = np.exp(signal * log_rate + noise * other.normal(size=log_rate.shape))
        accumulator.update(
            rate.astype(np.float32), counts, np.ones((16, 16), np.bool_), block=block
        )
    return accumulator


def test_blocks_add_up_to_the_whole() -> None:
    accumulator = score(5)
    sums, scores = accumulator.block_sums(), accumulator.compute()
    assert sums.moments.shape == (5, G, 6)
    assert sums.poisson_sums.shape == (5, G, 4)
    whole = paired(sums, score(5, signal=0.0).block_sums(), "pcc")
    assert whole.difference == pytest.approx(scores.summary()["pcc"], abs=1e-12)
    np.testing.assert_allclose(sums.null_rate, TRAIN_RATE)
    sums.moments[:] = 0  # a copy
    assert accumulator.compute().n_bins == scores.n_bins


@pytest.mark.parametrize("figure", ["pcc", "d2_poisson"])
def test_an_interval_has_the_figure_inside_and_the_width_of_the_sampling_error(figure) -> None:
    found = [score(seed=seed) for seed in range(30)]
    values = [a.compute().summary()[figure] for a in found]
    low, high = np.array([interval(a.block_sums(), figure, draws=300) for a in found]).T
    assert np.mean((low < values) & (values < high)) > 0.95
    assert np.mean(high - low) == pytest.approx(2 * 1.96 * np.std(values), rel=0.35)
    covered = (low < np.mean(values)) & (np.mean(values) < high)
    assert covered.mean() > 0.75


def test_the_same_seed_draws_the_same_blocks() -> None:
    sums = score().block_sums()
    assert interval(sums, "pcc") == interval(sums, "pcc")
    assert interval(sums, "pcc") != interval(sums, "pcc", seed=1)


def test_a_better_predictor_is_told_from_a_worse_one() -> None:
    good, bad = score().block_sums(), score(noise=1.0).block_sums()
    for figure in ("pcc", "d2_poisson"):
        got = paired(good, bad, figure)
        assert 0 < got.low < got.difference < got.high
        assert got.p < 0.01
        back = paired(bad, good, figure)
        assert back.difference == -got.difference
        assert (back.low, back.high) == pytest.approx((-got.high, -got.low))
        assert back.p == got.p


def test_a_predictor_is_no_better_than_itself() -> None:
    sums = score().block_sums()
    got = paired(sums, sums, "pcc")
    assert (got.difference, got.low, got.high, got.p) == (0.0, 0.0, 0.0, 1.0)


def test_equal_predictors_are_seldom_told_apart() -> None:
    """Two predictions with noise of their own; a test at 5 % should not find much more."""
    ps = []
    for seed in range(40):
        a = score(noise=0.5, seed=seed, n_blocks=12)
        b = ScaleAccumulator(G, 2, TRAIN_RATE, 12)
        rng, other = np.random.default_rng(seed), np.random.default_rng(seed + 5000)
        for block in range(12):
            log_rate = rng.normal(np.log(0.2), 0.7, (G, 16, 16))
            counts = rng.poisson(np.exp(log_rate)).astype(np.uint16)
            rate = np.exp(log_rate + 0.5 * other.normal(size=log_rate.shape))
            mask = np.ones((16, 16), np.bool_)
            b.update(rate.astype(np.float32), counts, mask, block=block)
        ps.append(paired(a.block_sums(), b.block_sums(), "pcc", draws=300).p)
    assert np.mean(np.array(ps) < 0.05) < 0.2


def test_too_few_blocks_have_no_interval() -> None:
    one = score(1).block_sums()
    assert np.isnan(interval(one, "pcc")).all()
    got = paired(one, one, "pcc")
    assert got.difference == 0.0
    assert np.isnan([got.low, got.high, got.p]).all()


def test_blocks_without_a_bin_are_left_out() -> None:
    sums = score(6).block_sums()
    empty = BlockSums(
        np.concatenate([sums.moments, np.zeros((4, G, 6))]),
        np.concatenate([sums.poisson_sums, np.zeros((4, G, 4))]),
        sums.null_rate,
    )
    assert interval(empty, "pcc") == interval(sums, "pcc")


def test_a_gene_that_no_draw_holds_is_no_crash() -> None:
    """All counts of a gene lie in one block: draws without it average the other genes."""
    sums = score(4).block_sums()
    sums.moments[1:, 0, 2:] = 0.0
    sums.poisson_sums[1:, 0, 2:] = 0.0
    assert np.isfinite(interval(sums, "pcc")).all()


def test_what_does_not_fit_is_refused() -> None:
    sums = score(4).block_sums()
    with pytest.raises(ValueError, match="same blocks, bins and counts"):
        paired(sums, score(4, seed=1).block_sums(), "pcc")
    with pytest.raises(ValueError, match="same blocks, bins and counts"):
        paired(sums, score(5).block_sums(), "pcc")
    with pytest.raises(
        ValueError, match="score: expected pcc, pcc_partial or d2_poisson; got 'ssim'"
    ):
        interval(sums, "ssim")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"poisson_sums: expected shape \(4, 3, 4\)"):
        BlockSums(sums.moments, sums.poisson_sums[:2], sums.null_rate)

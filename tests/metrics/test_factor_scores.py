"""Scores of all genes from factors equal those of dense rates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from virchow_st.kernels.pooling import sum_pool
from virchow_st.metrics import ScaleAccumulator
from virchow_st.metrics.bootstrap import interval
from virchow_st.metrics.deviance import RATE_FLOOR
from virchow_st.metrics.factor_scores import FactorScores
from virchow_st.types import SCALES_UM

G, K, SIDE = 30, 5, 32
TRAIN_RATE = np.linspace(0.02, 0.5, G)


class Patch:
    """Factors of a patch and of two others, counts and a tissue mask with an edge and a hole."""

    def __init__(self, rng: np.random.Generator, loadings: np.ndarray) -> None:
        self.h = rng.gamma(1.0, 1.0, (K, SIDE, SIDE)).astype(np.float32)
        self.others = [rng.gamma(1.0, 1.0, (K, SIDE, SIDE)).astype(np.float32) for _ in range(2)]
        self.loadings = loadings
        self.counts = rng.poisson(self.rate(self.h)).astype(np.uint16)
        self.counts[3] = 0
        self.mask = np.ones((SIDE, SIDE), np.bool_)
        self.mask[: rng.integers(0, 12)] = False
        self.mask[20, 5] = False

    def rate(self, h: np.ndarray) -> np.ndarray:
        return np.tensordot(self.loadings, h.astype(np.float64), 1).astype(np.float32)

    def sparse(self) -> dict[str, Any]:
        gene, position = np.nonzero(self.counts.reshape(G, -1))
        return {
            "start": np.searchsorted(gene, np.arange(G + 1)),
            "position": position.astype(np.uint16),
            "count": self.counts.reshape(G, -1)[gene, position].astype(np.uint32),
        }

    def summed(self, h: np.ndarray, scale_um: int) -> np.ndarray:
        return sum_pool(h, scale_um // 2).reshape(K, -1).T.astype(np.float32)


def draw(n: int = 3, seed: int = 0) -> list[Patch]:
    rng = np.random.default_rng(seed)
    loadings = rng.gamma(0.5, 0.1, (G, K)) + 1e-3
    loadings[4] = 1e-3  # a rate that hardly varies
    return [Patch(rng, loadings) for _ in range(n)]


def of_factors(patches: list[Patch], scale_um: int, n_blocks: int = 1) -> FactorScores:
    scores = FactorScores(patches[0].loadings, scale_um, TRAIN_RATE, n_blocks, n_nulls=2)
    for i, patch in enumerate(patches):
        scores.update(
            **patch.sparse(),
            factors=patch.summed(patch.h, scale_um),
            tissue_mask=patch.mask,
            nulls=[patch.summed(h, scale_um) for h in patch.others],
            block=i % n_blocks,
        )
    return scores


def of_rates(patches: list[Patch], scale_um: int, n_blocks: int = 1) -> ScaleAccumulator:
    scores = ScaleAccumulator(G, scale_um, TRAIN_RATE, n_blocks)
    for i, patch in enumerate(patches):
        rate, null, other = (patch.rate(h) for h in (patch.h, *patch.others))
        scores.update(rate, patch.counts, patch.mask, null, shifted_rate=other, block=i % n_blocks)
    return scores


@pytest.mark.parametrize("scale_um", SCALES_UM)
def test_scores_are_those_of_dense_rates(scale_um: int) -> None:
    patches = draw()
    got, want = of_factors(patches, scale_um).compute(), of_rates(patches, scale_um).compute()
    assert got.n_bins == want.n_bins > 0
    assert (got.scale_um, got.pcc_null.shape) == (scale_um, (2, G))
    for name in ("mean", "nonzero", "pcc", "pcc_ceiling", "d2_poisson", "calibration", "scored"):
        np.testing.assert_allclose(
            getattr(got, name), getattr(want, name), rtol=2e-6, atol=2e-6, err_msg=name
        )
    np.testing.assert_allclose(got.pcc_null[0], want.pcc_shuffled, atol=2e-6)
    np.testing.assert_allclose(got.pcc_null[1], want.pcc_shifted, atol=2e-6)
    assert not got.scored[3]
    assert np.isnan(got.calibration[3])


def test_intervals_are_those_of_dense_rates() -> None:
    patches = draw(6)
    got = of_factors(patches, 4, n_blocks=3).block_sums()
    want = of_rates(patches, 4, n_blocks=3).block_sums()
    np.testing.assert_allclose(got.moments, want.moments, rtol=1e-6)
    np.testing.assert_allclose(got.poisson_sums, want.poisson_sums, rtol=1e-5, atol=1e-3)
    for score in ("pcc", "d2_poisson"):
        assert interval(got, score) == pytest.approx(interval(want, score), abs=2e-6)


def test_rates_below_the_floor_are_raised_in_logarithms_alone() -> None:
    patches = draw(1)
    patches[0].loadings[0] = 1e-9
    got, want = of_factors(patches, 2), of_rates(patches, 2)
    sums, dense = got.block_sums().poisson_sums[0, 0], want.block_sums().poisson_sums[0, 0]
    n_bins = got.compute().n_bins
    assert patches[0].counts[0].sum() > 0
    np.testing.assert_allclose(sums[[0, 2, 3]], dense[[0, 2, 3]], rtol=1e-6)
    assert 0 < sums[1] < dense[1] == pytest.approx(RATE_FLOOR * n_bins)


def test_what_is_not_scored_is_not_used() -> None:
    patch = draw(1)[0]
    scores = [FactorScores(patch.loadings, 8, TRAIN_RATE) for _ in range(2)]
    given = patch.sparse()
    factors = patch.summed(patch.h, 8)
    scores[0].update(**given, factors=factors, tissue_mask=patch.mask)
    partly = ~patch.mask.reshape(8, 4, 8, 4).all((1, 3)).ravel()
    factors[partly] = np.nan
    row, col = np.divmod(given["position"].astype(int), SIDE)
    given["count"][partly[row // 4 * 8 + col // 4]] += 7
    scores[1].update(**given, factors=factors, tissue_mask=patch.mask)
    one, other = (s.compute() for s in scores)
    assert partly.any()
    np.testing.assert_array_equal(one.pcc, other.pcc)
    np.testing.assert_array_equal(one.d2_poisson, other.d2_poisson)


def test_without_a_whole_bin_nothing_is_defined() -> None:
    patch = draw(1)[0]
    scores = FactorScores(patch.loadings, 16, TRAIN_RATE)
    patch.mask[::8] = False
    scores.update(**patch.sparse(), factors=patch.summed(patch.h, 16), tissue_mask=patch.mask)
    found = scores.compute()
    assert found.n_bins == 0
    assert np.isnan(found.pcc).all()
    assert np.isnan(found.mean).all()
    assert found.pcc_null.shape == (0, G)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": np.zeros(3, np.int64)}, "start: expected shape"),
        ({"factors": np.zeros((16, K - 1), np.float32)}, "factors and nulls: expected shape"),
        ({"factors": np.full((16, K), np.nan, np.float32)}, "expected finite values"),
        ({"nulls": [np.zeros((16, K), np.float32)]}, "nulls: expected 0 arrays; got 1"),
        ({"block": 1}, "block: expected 0 to 0"),
        ({"tissue_mask": np.ones((16, 16), np.bool_)}, "position: expected below 256"),
        ({"count": 0}, "count: expected whole numbers above 0"),
        ({"count": 1.5}, "count: expected whole numbers above 0"),
    ],
)
def test_wrong_input_is_refused_and_changes_nothing(change: dict[str, Any], message: str) -> None:
    patch = draw(1)[0]
    scores = FactorScores(patch.loadings, 16, TRAIN_RATE)
    given = {
        **patch.sparse(),
        "factors": np.ones((16, K), np.float32),
        "tissue_mask": np.ones((SIDE, SIDE), np.bool_),
    }
    if "count" in change:
        change = {"count": np.full(len(given["count"]), change["count"])}
    with pytest.raises(ValueError, match=message):
        scores.update(**given | change)
    assert scores.n_patches == scores.compute().n_bins == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_um": 3}, "scale_um: expected a multiple of 2"),
        ({"loadings": np.full((G, K), np.inf)}, "loadings: expected"),
        ({"train_rate": np.ones(G + 1)}, "train_rate: expected shape"),
        ({"train_rate": np.full(G, -1.0)}, "train_rate: expected finite"),
        ({"n_nulls": -1}, "n_blocks, n_nulls: expected"),
    ],
)
def test_a_wrong_start_is_refused(change: dict[str, Any], message: str) -> None:
    given = {"loadings": np.ones((G, K)), "scale_um": 2, "train_rate": TRAIN_RATE}
    with pytest.raises(ValueError, match=message):
        FactorScores(**given | change)

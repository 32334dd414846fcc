"""Intervals hold the true rate as often as they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from denoised import patchwork
from tiny_store import write_store

import virchow_st
from virchow_st.config import DenoiseConfig
from virchow_st.denoise.bootstrap import draw_counts, shared_error
from virchow_st.denoise.estimate import estimate
from virchow_st.denoise.store import denoise_store
from virchow_st.denoise.uncertainty import rate_errors, times_larger
from virchow_st.errors import ConfigError
from virchow_st.field.interval import RateErrors
from virchow_st.kernels.pooling import sum_pool
from virchow_st.training.rows import SparseRows


def errors_of(**changed: object) -> RateErrors:
    tables = {name: np.ones((1, 2, 1, 2)) for name in ("level", "low", "high", "sd")}
    tables["level"][..., 0] = 0.5
    tables["low"][:] = 0.5
    tables["high"][0, 1] = 3.0
    values = {"scale_um": (2,), "group": np.array([0]), "mean": np.array([2.0]), **tables}
    return RateErrors(**(values | changed))  # type: ignore[arg-type]


def test_filled_bins_have_their_own_ratios() -> None:
    rate = np.array([[2.0, 2.0, np.nan]], np.float32)
    low, high, sd = errors_of().ratios(0, rate, 2, np.array([[False, True, False]]))
    np.testing.assert_array_equal(low, [[0.5, 0.5, np.nan]])
    np.testing.assert_array_equal(high, [[1.0, 3.0, np.nan]])
    assert np.isnan(sd[0, 2])


def test_between_levels_ratios_are_interpolated() -> None:
    errors = errors_of(high=np.broadcast_to(np.array([1.0, 2.0]), (1, 2, 1, 2)))
    rate = np.array([0.5, 1.0, np.sqrt(2), 2.0, 9.0], np.float32)
    _, high, _ = errors.ratios(0, rate, 2, np.zeros(5, bool))
    np.testing.assert_allclose(high, [1, 1, 1.5, 2, 2], rtol=1e-5)


@pytest.mark.parametrize(
    "changed",
    [
        {"sd": np.ones((1, 2, 1, 3))},
        {"low": np.full((1, 2, 1, 2), np.nan)},
        {"group": np.array([1])},
        {"mean": np.array([0.0])},
    ],
)
def test_tables_that_do_not_fit_are_refused(changed: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="interval: expected"):
        errors_of(**changed)


def test_drawn_counts_have_the_rates() -> None:
    rng = np.random.default_rng(0)
    factors = rng.gamma(1.0, 2.0, (40, 3)).astype(np.float32)
    loadings = rng.dirichlet(np.full(5, 0.5), 3).T
    exposure = rng.uniform(0.5, 2.0, 40)
    total = np.zeros((40, 5))
    for _ in range(400):
        drawn = draw_counts(factors, loadings, exposure, rng)
        np.add.at(total, (drawn.row, drawn.gene), drawn.count)
    expected = exposure[:, None] * (factors @ loadings.T)
    z = (total / 400 - expected) / np.sqrt(expected / 400)
    assert abs(z.mean()) < 0.3
    assert 0.8 < z.std() < 1.2


def test_held_out_counts_show_the_error_of_the_factors_at_every_scale() -> None:
    """Rates of 4 UMIs taken for 3: the squared error of a cell of n bins is n²."""
    slide, _ = patchwork(256, 1.0)
    slide = replace(slide, place=slide.place[1000:])  # squares are not whole
    n = len(slide.place)
    held_out = SparseRows.from_dense(np.random.default_rng(0).poisson(4.0, (n, 1)), np.ones(n))
    by_square = shared_error(held_out, np.full((n, 1), 3, np.float32), np.ones((1, 1)), slide)
    found = by_square.sum(0)
    assert by_square.shape == (4, 4)
    np.testing.assert_allclose(found / n, [1, 4, 16, 64], rtol=0.1)
    right = shared_error(held_out, np.full((n, 1), 4, np.float32), np.ones((1, 1)), slide)
    assert (np.abs(right.sum(0)) < 0.2 * found).all()


def test_the_standard_error_of_the_widening_is_that_of_drawing_other_squares() -> None:
    """Squares whose errors are drawn anew: the ratio varies by what the jackknife says."""
    rng = np.random.default_rng(0)
    boot = np.full((12, 4), 2.0)
    found = [times_larger(rng.normal(3.0, 1.0, (12, 4)), boot) for _ in range(400)]
    ratio, error = np.array(found).T
    assert ratio.mean() == pytest.approx(1.5, abs=0.01)
    assert np.sqrt((error**2).mean()) == pytest.approx(ratio.std(), rel=0.1)
    assert times_larger(np.full((1, 4), 3.0), boot[:1]) == (1.5, 0.0)
    assert times_larger(np.ones((2, 4)), -boot[:2])[0] == 1.0


@pytest.mark.parametrize("umis_per_bin", [3.0, 8.0])
def test_coverage_is_near_nine_tenths(umis_per_bin: float) -> None:
    slide, truth = patchwork(128, umis_per_bin)
    found = estimate(slide, 3, 0)
    errors, widening = rate_errors(slide, found, None, 0)
    rates = found.rates.factors @ found.rates.loadings.T
    assert widening.factor >= 1
    for scale in (2, 8):
        inside = []
        for g in range(len(slide.panel)):
            true, rate = (
                sum_pool(x[:, g].reshape(1, 128, 128).astype(np.float32), scale // 2)[0]
                for x in (truth, rates)
            )
            low, high, sd = errors.ratios(g, rate, scale, np.zeros(rate.shape, bool))
            assert (low < high).all()
            assert (sd > 0).all()
            inside.append(((low * rate <= true) & (true <= high * rate)).mean())
        assert 0.84 < np.mean(inside) < 0.975


def test_a_field_without_errors_says_so(tmp_path: Path) -> None:
    import zarr

    store = write_store(tmp_path / "A.vst", rate=0.6)
    denoise_store(store.path, tmp_path / "A.zarr", DenoiseConfig(factors=2))
    group = zarr.open_group(str(tmp_path / "A.zarr"), mode="a")
    del group["tables/loadings/uns/interval"]
    field = virchow_st.open_field(tmp_path / "A.zarr")
    with pytest.raises(ConfigError, match="expected a field with errors of its rates"):
        field.interval(field.genes[0])

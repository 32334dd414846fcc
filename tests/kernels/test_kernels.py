"""Every kernel equals its plain reference, and keeps to the mask."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from virchow_st.kernels.moments import masked_moments, masked_poisson_sums
from virchow_st.kernels.pooling import pool_mask, sum_pool
from virchow_st.kernels.ssim import masked_ssim, masked_ssims
from virchow_st.kernels.table import TABLE, Pair, draw_patch


def as_arrays(result: object) -> list[np.ndarray]:
    return [np.asarray(r) for r in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("pair", TABLE, ids=lambda pair: pair.name)
def test_kernel_equals_its_reference(pair: Pair, seed: int) -> None:
    inputs = pair.make_inputs(np.random.default_rng(seed))
    got, want = as_arrays(pair.kernel(*inputs)), as_arrays(pair.reference(*inputs))
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        np.testing.assert_allclose(g, w, rtol=pair.tolerance, atol=pair.tolerance)


def test_drawn_patch_is_as_sparse_as_a_real_one() -> None:
    rate, counts, tissue_mask = draw_patch(np.random.default_rng(0))
    assert rate.dtype == np.float32
    assert counts.dtype == np.uint16
    assert 0.93 < (counts == 0).mean() < 0.98
    assert 0.5 < tissue_mask.mean() < 1.0


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.float32])
def test_pooling_conserves_counts(factor: int, dtype: type) -> None:
    counts = np.random.default_rng(factor).poisson(0.3, (3, 16, 32)).astype(dtype)
    pooled = sum_pool(counts, factor)
    assert pooled.dtype == np.float64
    assert pooled.shape == (3, 16 // factor, 32 // factor)
    np.testing.assert_array_equal(pooled.sum((1, 2)), counts.sum((1, 2)))


def test_pooling_does_not_overflow_small_integers() -> None:
    counts = np.full((1, 8, 8), 65535, np.uint16)
    assert sum_pool(counts, 8)[0, 0, 0] == 64 * 65535


def test_a_factor_that_leaves_a_remainder_is_refused() -> None:
    with pytest.raises(ValueError, match="divides"):
        sum_pool(np.zeros((1, 9, 8)), 2)
    with pytest.raises(ValueError, match="divides"):
        pool_mask(np.ones((8, 9), np.bool_), 2)


def test_a_coarse_bin_needs_all_its_fine_bins() -> None:
    mask = np.ones((4, 8), np.bool_)
    mask[3, 5] = False
    np.testing.assert_array_equal(pool_mask(mask, 4), [[True, False]])


def test_moments_of_small_numbers() -> None:
    x, y = np.array([[1.0, 2.0, 100.0]]), np.array([[3, 5, 100]], np.uint16)
    mask = np.array([True, True, False])
    np.testing.assert_array_equal(masked_moments(x, y, mask), [[2, 3, 8, 5, 34, 13]])


def test_sums_that_float32_could_not_hold() -> None:
    """Past 2²⁴, adding 1 to a float32 changes nothing."""
    n = 2**24 + 1000
    ones = np.ones((1, n), np.float32)
    assert masked_moments(ones, ones, np.ones(n, np.bool_))[0, 1] == n


def test_poisson_sums_floor_the_rate() -> None:
    rate, counts = np.array([[-1.0, 0.0, 2.0]]), np.array([[3.0, 0.0, 2.0]])
    got = masked_poisson_sums(rate, counts, np.ones(3, np.bool_), 1e-3)
    want = [2, 2.002, 3 * np.log(1e-3) + 2 * np.log(2), 3 * np.log(3) + 2 * np.log(2)]
    np.testing.assert_allclose(got[0], want, rtol=1e-14)


def test_nothing_outside_the_mask_is_used() -> None:
    rate, counts, mask = draw_patch(np.random.default_rng(3), n_genes=4)
    x, y = rate.astype(np.float64), counts.astype(np.float64)
    other_x, other_y = np.where(mask, x, np.nan), np.where(mask, y, 1e6)
    flat, other_flat = (
        (x.reshape(4, -1), y.reshape(4, -1)),
        (
            other_x.reshape(4, -1),
            other_y.reshape(4, -1),
        ),
    )
    m = mask.ravel()
    np.testing.assert_array_equal(masked_moments(*flat, m), masked_moments(*other_flat, m))
    np.testing.assert_array_equal(
        masked_poisson_sums(*flat, m, 1e-6), masked_poisson_sums(*other_flat, m, 1e-6)
    )
    got, want = masked_ssims((other_x,), other_y, mask), masked_ssims((x,), y, mask)
    np.testing.assert_array_equal(got[0], want[0])
    assert got[1] == want[1] > 0


def test_ssim_on_a_full_mask_is_scikit_images_mean() -> None:
    """Called as anyone would call it, with values that already span 0–1."""
    rng = np.random.default_rng(4)
    x, y = rng.random((2, 40, 50))
    for v in (x, y):
        v.flat[:2] = 0.0, 1.0
    total, n = masked_ssim(x, y, np.ones((40, 50), np.bool_))
    assert n == 34 * 44
    assert total / n == pytest.approx(
        structural_similarity(x, y, win_size=7, data_range=1), abs=1e-9
    )


def test_ssim_does_not_depend_on_units() -> None:
    rate, counts, mask = draw_patch(np.random.default_rng(5), n_genes=1)
    x, y = rate[0].astype(np.float64), counts[0].astype(np.float64)
    assert masked_ssim(50 * x + 3, 2 * y, mask)[0] == pytest.approx(masked_ssim(x, y, mask)[0])


def test_ssim_of_constant_maps() -> None:
    mask = np.ones((16, 16), np.bool_)
    counts = np.random.default_rng(6).poisson(0.1, (16, 16)).astype(np.float64)
    assert masked_ssim(np.full((16, 16), 0.05), counts, mask) == masked_ssim(
        np.zeros((16, 16)), counts, mask
    )
    total, n = masked_ssim(np.full((16, 16), 0.05), np.zeros((16, 16)), mask)
    assert (total, n) == (100.0, 100)


@pytest.mark.parametrize("side", [1, 6])
def test_ssim_where_no_window_fits(side: int) -> None:
    x = np.random.default_rng(7).random((side, side))
    assert masked_ssim(x, x, np.ones((side, side), np.bool_)) == (0.0, 0)


def test_ssim_where_one_window_fits() -> None:
    rng = np.random.default_rng(8)
    x, y = rng.random((2, 20, 20))
    mask = np.zeros((20, 20), np.bool_)
    mask[5:12, 9:16] = True
    crop = [(v[mask] - v[mask].min()) / np.ptp(v[mask]) for v in (x, y)]
    want = structural_similarity(
        crop[0].reshape(7, 7), crop[1].reshape(7, 7), win_size=7, data_range=1
    )
    assert masked_ssim(x, y, mask) == (pytest.approx(want, abs=1e-12), 1)

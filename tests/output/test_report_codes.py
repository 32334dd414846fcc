"""Codes of factors and loadings in the page: their errors and their size."""

from __future__ import annotations

import numpy as np
import pytest

from virchow_st.output.report.codes import (
    STEPS,
    code_factor,
    code_loadings,
    decode_factor,
    decode_loadings,
    pack_loadings,
    pack_mask,
    pack_steps,
    unpack,
)


def bound(values: np.ndarray, top: float) -> np.ndarray:
    """Half a step of the square root, as docs/report.md states it."""
    return np.sqrt(values * top) / STEPS + top / (2 * STEPS) ** 2


def test_a_factor_is_within_half_a_step() -> None:
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(-3, 2, 100_000)).astype(np.float32)
    values[:3] = 0, values.max(), values.min()
    codes, top = code_factor(values)
    assert top == values.max()
    error = np.abs(decode_factor(codes, top) - values)
    assert (error <= bound(values, top) * (1 + 1e-5)).all()
    assert (error > 0.9 * bound(values, top)).any()
    assert error.max() / top < 0.004
    at_hundredth = np.abs(values / top - 0.01) < 2e-4
    assert at_hundredth.any()
    assert (error[at_hundredth] / values[at_hundredth]).max() < 0.041
    packed = np.cumsum(unpack(pack_steps(codes)), dtype=np.uint64) % 256
    np.testing.assert_array_equal(packed, codes)


@pytest.mark.parametrize("values", [np.zeros(5), np.zeros(0)])
def test_a_factor_of_nothing(values: np.ndarray) -> None:
    codes, top = code_factor(values.astype(np.float32))
    assert decode_factor(codes, top).tolist() == values.tolist()
    assert unpack(pack_steps(codes)).size == values.size


def test_loadings_are_within_half_a_step() -> None:
    rng = np.random.default_rng(1)
    loadings = rng.gamma(0.05, 1, (5000, 16)).astype(np.float32)
    loadings /= loadings.sum(0)
    coded = code_loadings(loadings)
    found = decode_loadings(coded)
    there = loadings >= loadings.max() * 1e-9
    assert 0.2 < there.mean() < 1
    assert (np.abs(found / np.where(there, loadings, 1) - 1)[there]).max() < 1.6e-4
    assert not found[~there].any()
    low, high = unpack(pack_loadings(coded)).reshape(2, 5000, 16).astype(np.uint16)
    np.testing.assert_array_equal(low + 256 * high, coded.codes)


def test_a_mask_is_a_bit_per_bin() -> None:
    mask = np.random.default_rng(2).random((37, 21)) < 0.5
    bits = np.unpackbits(unpack(pack_mask(mask)))[: mask.size]
    np.testing.assert_array_equal(bits.reshape(mask.shape), mask)

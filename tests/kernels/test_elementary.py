"""The float32 exponential and logarithm of the kernels, against NumPy's in float64."""

import numpy as np
import pytest
from numba import njit

from virchow_st.kernels.elementary import OPTIONS, exp, log


@njit(**OPTIONS)
def exp_of(x, out):
    for i in range(len(x)):
        out[i] = exp(x[i])


@njit(**OPTIONS)
def log_of(x, out):
    for i in range(len(x)):
        out[i] = log(x[i])


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-7), (np.float64, 1e-15)])
def test_exp(dtype, tolerance):
    x = np.concatenate([np.linspace(-87, 88, 100_001), np.linspace(-1e-3, 1e-3, 1001)])
    x = x.astype(dtype)
    out = np.empty_like(x)
    exp_of(x, out)
    np.testing.assert_allclose(out, np.exp(x.astype(np.float64)), rtol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-7), (np.float64, 1e-15)])
def test_log(dtype, tolerance):
    """Relative to the result near 1 too, where it passes through 0."""
    x = np.concatenate([np.geomspace(1e-37, 1e38, 100_001), np.linspace(0.5, 2, 10_001)])
    x = x.astype(dtype)
    out = np.empty_like(x)
    log_of(x, out)
    np.testing.assert_allclose(out, np.log(x.astype(np.float64)), rtol=tolerance)


def test_whole_and_special_numbers():
    x = np.array([0, -0.0, np.nan], np.float32)
    out = np.empty_like(x)
    exp_of(x, out)
    np.testing.assert_array_equal(out, np.array([1, 1, np.nan], np.float32))
    log_of(np.ones(3, np.float32), out)
    np.testing.assert_array_equal(out, 0)

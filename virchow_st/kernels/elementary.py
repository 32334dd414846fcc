"""Exponential and logarithm that the compiler can vectorise, for use inside numba functions only.

A loop that calls the C library's `exp` cannot be vectorised, and the calls would then dominate the
cost of a sweep over a map. In float32 the two functions are therefore written as plain arithmetic:
the power of two is split off and a short series evaluates the remainder (Muller 2016, *Elementary
Functions*, chapters 4 and 11). Their relative error is at most 3e-7. In float64, which the tests
use to compare many digits, they call the C library.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

# Multiplications and additions may be fused. Nothing may be reordered, because adding and then
# subtracting `_SHIFTER` is how a number is rounded. NaN is propagated as usual.
OPTIONS: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}

_LOG2_E = np.float32(1 / math.log(2))
_LN_2 = np.float32(math.log(2))
_LN_2_HIGH = np.float32(355 / 512)  # has few significant bits, so integer multiples are exact
_LN_2_LOW = np.float32(math.log(2) - 355 / 512)
_SHIFTER = np.float32(1.5 * 2**23)  # adding it leaves no fraction bits, so rounds to an integer
_MANTISSA_BITS = np.int32(23)
_MANTISSA = np.int32((1 << 23) - 1)
_SQRT_HALF = np.int32(0x3F3504F3)  # the bits of √½


def exp(x: float) -> float:
    """Exponential of x, valid for -87 < x < 88 in float32; NaN without payload gives NaN."""
    raise NotImplementedError("exp: works inside numba functions only")


def log(x: float) -> float:
    """Natural logarithm of a finite positive x, valid above 1.2e-38 in float32."""
    raise NotImplementedError("log: works inside numba functions only")


@overload(exp, jit_options=OPTIONS)
def _exp(x: Any) -> Any:
    def exp64(x: Any) -> Any:
        return math.exp(x)

    def exp32(x: Any) -> Any:
        shifted = x * _LOG2_E + _SHIFTER
        n = shifted - _SHIFTER
        r = (x - n * _LN_2_HIGH) - n * _LN_2_LOW  # |r| ≤ ½ ln 2; error of the series: 3e-9
        y = np.float32(0.0013814540105)
        y = y * r + np.float32(0.0083687451362)
        y = y * r + np.float32(0.0416683907872)
        y = y * r + np.float32(0.1666652039882)
        y = y * r + np.float32(0.4999999343211)
        y = y * r + np.float32(1)
        y = y * r + np.float32(1)
        power = np.float32(shifted).view(np.int32) << _MANTISSA_BITS  # n, as added to an exponent
        return np.int32(np.float32(y).view(np.int32) + power).view(np.float32)

    return exp32 if x == types.float32 else exp64


@overload(log, jit_options=OPTIONS)
def _log(x: Any) -> Any:
    def log64(x: Any) -> Any:
        return math.log(x)

    def log32(x: Any) -> Any:
        bits = np.int32(np.float32(x).view(np.int32) - _SQRT_HALF)
        n = np.float32(bits >> _MANTISSA_BITS)
        f = np.int32((bits & _MANTISSA) + _SQRT_HALF).view(np.float32) - np.float32(1)
        s = f / (f + np.float32(2))  # log(1 + f) = 2 artanh s, |s| < 0.172; error: 2e-9
        z = s * s
        y = np.float32(2 / 9)
        y = y * z + np.float32(2 / 7)
        y = y * z + np.float32(2 / 5)
        y = y * z + np.float32(2 / 3)
        y = y * z + np.float32(2)
        return n * _LN_2 + s * y

    return log32 if x == types.float32 else log64

"""Exponential and logarithm that the compiler can vectorise.

A call of the C library's `exp` keeps a loop at one number a time and would cost more than all else
in a sweep over a map. In float32 the two functions here are therefore written out as arithmetic:
split off the power of two, then a short series for what remains (Muller 2016, *Elementary
Functions*, chapters 4 and 11). They err by a relative 3e-7 at most. In float64, where tests compare
many digits, they are the C library's.

For use inside numba functions only.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

# Multiplications and additions may be joined; nothing is reordered, since `_SHIFTER` is added and
# taken away again on purpose; and NaN keeps its meaning.
OPTIONS: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}

_LOG2_E = np.float32(1 / math.log(2))
_LN_2 = np.float32(math.log(2))
_LN_2_HIGH = np.float32(355 / 512)  # few bits, so that whole multiples are exact
_LN_2_LOW = np.float32(math.log(2) - 355 / 512)
_SHIFTER = np.float32(1.5 * 2**23)  # adding it leaves no bits for a fraction: rounds to whole
_MANTISSA_BITS = np.int32(23)
_MANTISSA = np.int32((1 << 23) - 1)
_ONE = np.int32(0x3F800000)  # the bits of 1.0
_SQRT_HALF = np.int32(0x3F3504F3)  # the bits of √½


def exp(x: float) -> float:
    """Exponential, for -87 < x < 88 in float32; of NaN it is NaN."""
    raise NotImplementedError("exp: works inside numba functions only")


def log(x: float) -> float:
    """Natural logarithm of a finite number, above 1.2e-38 in float32."""
    raise NotImplementedError("log: works inside numba functions only")


@overload(exp, jit_options=OPTIONS)
def _exp(x: Any) -> Any:
    def exp64(x: Any) -> Any:
        return math.exp(x)

    def exp32(x: Any) -> Any:
        shifted = x * _LOG2_E + _SHIFTER
        n = shifted - _SHIFTER
        r = (x - n * _LN_2_HIGH) - n * _LN_2_LOW  # |r| ≤ ½ ln 2: the series errs by 5e-9
        y = np.float32(1 / 5040)
        y = y * r + np.float32(1 / 720)
        y = y * r + np.float32(1 / 120)
        y = y * r + np.float32(1 / 24)
        y = y * r + np.float32(1 / 6)
        y = y * r + np.float32(1 / 2)
        y = y * r + np.float32(1)
        y = y * r + np.float32(1)
        power = (np.float32(shifted).view(np.int32) << _MANTISSA_BITS) + _ONE
        return y * np.int32(power).view(np.float32)

    return exp32 if x == types.float32 else exp64


@overload(log, jit_options=OPTIONS)
def _log(x: Any) -> Any:
    def log64(x: Any) -> Any:
        return math.log(x)

    def log32(x: Any) -> Any:
        bits = np.int32(np.float32(x).view(np.int32) - _SQRT_HALF)
        n = np.float32(bits >> _MANTISSA_BITS)
        f = np.int32((bits & _MANTISSA) + _SQRT_HALF).view(np.float32) - np.float32(1)
        s = f / (f + np.float32(2))  # log(1 + f) = 2 artanh s, |s| < 0.172: errs by 2e-9
        z = s * s
        y = np.float32(2 / 9)
        y = y * z + np.float32(2 / 7)
        y = y * z + np.float32(2 / 5)
        y = y * z + np.float32(2 / 3)
        y = y * z + np.float32(2)
        return n * _LN_2 + s * y

    return log32 if x == types.float32 else log64

"""Token records: float16, or int8 with one float32 scale per channel and patch.

docs/store-format.md specifies the bytes and the rounding.
"""

from __future__ import annotations

import math

import numpy as np

from virchow_st.errors import StoreError
from virchow_st.types import Array, Float32Array

TOKEN_DTYPES = ("float16", "int8")

_HALF = np.finfo(np.float16)
_LARGEST_CODE = 127  # -128 stays unused, so that codes are symmetric
_LARGEST_SCALE = np.float32(_HALF.max) / np.float32(_LARGEST_CODE)


def pack_tokens(tokens: Array, dtype: str = "float16") -> bytes:
    """Tokens, or the class token, to bytes.

    Args:
        tokens: (T, T, D), or (D,) in float16 only; any float dtype.
        dtype: ``float16`` or ``int8``.

    Raises:
        StoreError: a value is not finite in float16.
    """
    with np.errstate(over="ignore"):  # an overflow becomes infinite and is refused below
        half = np.ascontiguousarray(tokens, "<f2")
    if not np.isfinite(half).all():
        raise StoreError("tokens: not finite in float16; the encoder's output is out of range")
    return half.tobytes() if dtype == "float16" else _pack_int8(half)


def unpack_tokens(payload: memoryview, shape: tuple[int, ...], dtype: str = "float16") -> Array:
    """Bytes to a writable float16 array of ``shape``; writable float16 input is not copied.

    Raises:
        StoreError: another length, or a forbidden state of int8 tokens.
    """
    expected = token_bytes(shape, dtype)
    if len(payload) != expected:
        raise StoreError(f"token record: expected {expected} bytes, got {len(payload)}")
    if dtype == "float16":
        tokens = np.frombuffer(payload, "<f2").reshape(shape)
        return tokens.astype(np.float16, copy=not tokens.flags.writeable)
    return _unpack_int8(payload, shape)


def token_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Length of the payload of a token record in bytes."""
    n = math.prod(shape)  # numpy's product would wrap around for the numbers of a damaged manifest
    return 2 * n if dtype == "float16" else 4 * shape[-1] + n


def _pack_int8(half: Array) -> bytes:
    """(T, T, D) finite float16 to scales and codes."""
    x = half.astype(np.float32)
    scales = np.abs(x).max(axis=(0, 1)) / np.float32(_LARGEST_CODE)
    codes = np.rint(x / np.where(scales > 0, scales, np.float32(1)))  # half to even
    return scales.astype("<f4").tobytes() + codes.astype(np.int8).tobytes()


def _unpack_int8(payload: memoryview, shape: tuple[int, ...]) -> Array:
    from virchow_st.kernels.tokens import dequantise  # loads numba, which float16 does not need

    return dequantise(*_codes_and_scales(payload, shape))


def unpack_codes(payload: memoryview, shape: tuple[int, ...]) -> tuple[Array, Float32Array]:
    """Bytes of int8 tokens to copies of their codes, int8 of ``shape``, and scales, float32 (D,).

    A token is ``codes * scales`` in float32, rounded to float16.

    Raises:
        StoreError: another length, or a forbidden state.
    """
    expected = token_bytes(shape, "int8")
    if len(payload) != expected:
        raise StoreError(f"token record: expected {expected} bytes, got {len(payload)}")
    codes, scales = _codes_and_scales(payload, shape)
    return codes.copy(), scales.astype(np.float32)


def _codes_and_scales(payload: memoryview, shape: tuple[int, ...]) -> tuple[Array, Array]:
    dim = shape[-1]
    scales = np.frombuffer(payload, "<f4", dim)
    codes = np.frombuffer(payload, np.int8, offset=4 * dim).reshape(shape)
    # Comparisons with NaN are false; -0.0 is found by its sign bit.
    if not (scales <= _LARGEST_SCALE).all() or np.signbit(scales).any():
        raise StoreError(f"token record: expected scales of 0 to {_LARGEST_SCALE:.2f}")
    if (codes == -128).any():
        raise StoreError("token record: the code -128 is not used")
    is_zero = scales == 0
    if is_zero.any() and codes[..., is_zero].any():
        raise StoreError("token record: a channel of scale 0 holds codes that are not 0")
    return codes, scales

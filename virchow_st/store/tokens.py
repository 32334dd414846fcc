"""Token records: float16, or int8 with one float32 scale per channel and patch.

docs/store-format.md specifies the bytes and the rounding.
"""

from __future__ import annotations

import math

import numpy as np

from virchow_st.errors import StoreError
from virchow_st.types import Array, Float32Array

_HALF = np.finfo(np.float16)
_LARGEST_CODE = 127  # -128 stays unused, so that codes are symmetric
_LARGEST_SCALE = np.float32(_HALF.max) / np.float32(_LARGEST_CODE)


def pack_tokens(tokens: Array, dtype: str = "float16") -> bytes:
    """Pack the tokens of a patch, or its class token.

    Args:
        tokens: (T, T, D) tokens, or a (D,) class token, which is always stored as float16; of any
            float dtype.
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
    """Unpack tokens to a writable float16 array; writable float16 bytes are not copied.

    Args:
        payload: payload of the record.
        shape: shape of the tokens, (T, T, D) or (D,).
        dtype: type in which the store holds them, ``float16`` or ``int8``.

    Raises:
        StoreError: the payload has another length, or int8 tokens in a forbidden state.
    """
    expected = token_bytes(shape, dtype)
    if len(payload) != expected:
        raise StoreError(f"token record: expected {expected} bytes, got {len(payload)}")
    if dtype == "float16":
        tokens = np.frombuffer(payload, "<f2").reshape(shape)
        return tokens.astype(np.float16, copy=not tokens.flags.writeable)
    return _unpack_int8(payload, shape)


def token_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Length of the payload of a token record in bytes.

    Example:
        >>> token_bytes((16, 16, 1280), "float16")
        655360
    """
    n = math.prod(shape)  # numpy's product could overflow with the numbers of a damaged manifest
    return 2 * n if dtype == "float16" else 4 * shape[-1] + n


def _pack_int8(half: Array) -> bytes:
    """Pack (T, T, D) finite float16 as scales and codes."""
    x = half.astype(np.float32)
    scales = np.abs(x).max(axis=(0, 1)) / np.float32(_LARGEST_CODE)
    codes = np.rint(x / np.where(scales > 0, scales, np.float32(1)))  # half to even
    return scales.astype("<f4").tobytes() + codes.astype(np.int8).tobytes()


def _unpack_int8(payload: memoryview, shape: tuple[int, ...]) -> Array:
    from virchow_st.kernels.tokens import dequantise  # imports numba, not needed for float16

    return dequantise(*_codes_and_scales(payload, shape))


def unpack_codes(payload: memoryview, shape: tuple[int, ...]) -> tuple[Array, Float32Array]:
    """Unpack int8 tokens to codes and scales.

    Tokens are ``codes * scales`` in float32, rounded to float16.

    Returns:
        Copies of the codes, int8 of ``shape``, and of the scales, (D,) float32.

    Raises:
        StoreError: the payload has another length or is in a forbidden state.
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
    # The comparison is false for NaN; -0.0 is found by its sign bit.
    if not (scales <= _LARGEST_SCALE).all() or np.signbit(scales).any():
        raise StoreError(f"token record: expected scales of 0 to {_LARGEST_SCALE:.2f}")
    if (codes == -128).any():
        raise StoreError("token record: the code -128 is not used")
    is_zero = scales == 0
    if is_zero.any() and codes[..., is_zero].any():
        raise StoreError("token record: a channel of scale 0 holds codes that are not 0")
    return codes, scales

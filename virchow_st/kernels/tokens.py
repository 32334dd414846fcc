"""Conversion of stored int8 tokens to float16: codes × scales in one pass.

NumPy converts to float16 value by value, which takes longer than all other steps of reading a
patch. Here the rounding is done on the bits without a branch, so that the loop vectorises.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from virchow_st.types import Array, Float32Array

_SIGN = np.uint32(0x8000_0000)
_SMALLEST_NORMAL = np.uint32(0x3880_0000)  # 2⁻¹⁴, the smallest normal float16, as float32
_HALF = np.uint32(0x3F00_0000)  # 0.5 as float32: its last bit is worth 2⁻²⁴, float16's smallest
_REBIAS = np.uint32((127 - 15) << 10)  # exponent bias: 127 in float32, 15 in float16
_BELOW_HALF_STEP = np.uint32((1 << 12) - 1)  # just below half of the 13 bits that float16 drops


def dequantise(codes: Array, scales: Float32Array) -> Array:
    """Multiply codes by scales in float32 and round to float16, half to even.

    Args:
        codes: (…, D) int8, C-contiguous.
        scales: (D,) float32 per channel, finite, small enough that no product exceeds the float16
            range.

    Returns:
        (…, D) float16.

    Example:
        >>> import numpy as np
        >>> dequantise(np.array([[2, -4]], np.int8), np.array([0.5, 0.25], np.float32)).tolist()
        [[1.0, -1.0]]
    """
    halves = np.empty(codes.shape, np.uint16)
    dim = codes.shape[-1]
    _fill(codes.reshape(-1, dim), scales, halves.reshape(-1, dim))
    return halves.view(np.float16)


@njit(cache=True, nogil=True)
def _fill(codes: Array, scales: Float32Array, halves: Array) -> None:
    n, dim = codes.shape
    product, shifted = np.empty(dim, np.float32), np.empty(dim, np.float32)
    product_bits, shifted_bits = product.view(np.uint32), shifted.view(np.uint32)
    for i in range(n):
        for c in range(dim):
            product[c] = np.float32(codes[i, c]) * scales[c]
            # Adding 0.5 lets the hardware round a number below 2⁻¹⁴ to multiples of 2⁻²⁴.
            shifted[c] = abs(product[c]) + np.float32(0.5)
        for c in range(dim):
            sign = product_bits[c] & _SIGN
            size = product_bits[c] ^ sign
            is_odd = (size >> np.uint32(13)) & np.uint32(1)
            normal = ((size + _BELOW_HALF_STEP + is_odd) >> np.uint32(13)) - _REBIAS
            small = shifted_bits[c] - _HALF
            half = normal if size >= _SMALLEST_NORMAL else small
            halves[i, c] = np.uint16(half | (sign >> np.uint32(16)))

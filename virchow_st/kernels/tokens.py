"""int8 codes × scales → float16, in one pass.

NumPy's own conversion to float16 goes value by value and takes longer than all else that reading a
patch takes. Here the rounding is done on the bits, without a branch, so that it vectorises.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from virchow_st.types import Array, Float32Array

_SIGN = np.uint32(0x8000_0000)
_SMALLEST_NORMAL = np.uint32(0x3880_0000)  # 2⁻¹⁴, of float16, as float32
_HALF = np.uint32(0x3F00_0000)  # 0.5 as float32: one step of its last bit is float16's least, 2⁻²⁴
_REBIAS = np.uint32((127 - 15) << 10)  # exponents of float32 count from 127, of float16 from 15
_BELOW_HALF_STEP = np.uint32((1 << 12) - 1)  # of the 13 bits that float16 has not


def dequantise(codes: Array, scales: Float32Array) -> Array:
    """``codes * scales`` in float32, rounded to float16, half to even.

    Args:
        codes: (…, D) int8, C-contiguous.
        scales: (D,) float32, finite, so small that no product is beyond float16.

    Returns:
        (…, D) float16.
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

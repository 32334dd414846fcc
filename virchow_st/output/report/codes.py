"""Codes in which a page holds factors and loadings, small enough for a file to send.

A factor is held in 256 steps that are evenly spaced in its square root, a loading in 65,535 steps
that are evenly spaced in its logarithm. Both are packed by zlib, which browsers can inflate, and
written in base64. `page/packed.js` is the other side.

Letters: N bins, G genes, K factors.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from virchow_st.types import Array, BoolArray, Float32Array, Float64Array, UInt8Array

STEPS = 255
"""Steps of a factor above 0."""
LOADING_STEPS = 65_534
"""Steps of a loading above the smallest that is not 0."""
SMALLEST = 1e-9
"""Loadings below this share of the largest are 0 on the page."""


@dataclass(frozen=True)
class CodedLoadings:
    """Loadings as the page holds them.

    Attributes:
        codes: (G, K) uint16; 0 stands for 0, and c > 0 for ``exp(low + step * (c - 1))``.
        low, step: Of the logarithm.
    """

    codes: Array
    low: float
    step: float


def code_factor(values: Float32Array) -> tuple[UInt8Array, float]:
    """Code a factor; see `decode_factor`.

    Args:
        values: (N,) finite and ≥ 0.

    Returns:
        (N,) uint8, and the value that the last step stands for, which is the largest.
    """
    top = float(values.max(initial=0.0)) or 1.0
    codes = np.rint(STEPS * np.sqrt(values / np.float32(top)))
    return np.minimum(codes, STEPS).astype(np.uint8), top


def decode_factor(codes: UInt8Array, top: float) -> Float64Array:
    """The values that codes stand for: ``top * (code / 255) ** 2``.

    The error of a value v is at most half a step: ``top * (√(v / top) / 255 + 1 / 510²)``.

    Example:
        >>> codes, top = code_factor(np.array([0, 0.5, 2], np.float32))
        >>> codes.tolist(), decode_factor(codes, top).round(3).tolist()
        ([0, 128, 255], [0.0, 0.504, 2.0])
    """
    values: Float64Array = top * (codes / STEPS) ** 2
    return values


def code_loadings(loadings: Float32Array) -> CodedLoadings:
    """Code loadings (G, K) ≥ 0 with a relative error of at most half a step, 1.6e-4."""
    values = loadings.astype(np.float64)
    high = float(values.max(initial=0.0)) or 1.0
    low, step = float(np.log(high * SMALLEST)), float(-np.log(SMALLEST) / LOADING_STEPS)
    is_there = values >= high * SMALLEST
    logs = np.log(np.where(is_there, values, high))
    codes = np.where(is_there, 1 + np.rint((logs - low) / step), 0)
    return CodedLoadings(codes.astype(np.uint16), low, step)


def decode_loadings(coded: CodedLoadings) -> Float64Array:
    """(G, K) loadings that codes stand for.

    Example:
        >>> decode_loadings(code_loadings(np.array([[0, 0.25], [1, 1e-12]], np.float32))).round(3)
        array([[0.  , 0.25],
               [1.  , 0.  ]])
    """
    values = np.exp(coded.low + coded.step * (coded.codes.astype(np.float64) - 1))
    return np.where(coded.codes > 0, values, 0.0)


def pack_steps(codes: UInt8Array) -> str:
    """Codes (N,) as differences of each from the one before, which pack better."""
    return _packed(np.diff(codes, prepend=np.uint8(0)).tobytes())


def pack_loadings(coded: CodedLoadings) -> str:
    """Codes of loadings, all low bytes and then all high bytes, gene by gene."""
    flat = np.ascontiguousarray(coded.codes, np.uint16).ravel()
    return _packed((flat & 255).astype(np.uint8).tobytes() + (flat >> 8).astype(np.uint8).tobytes())


def pack_mask(mask: BoolArray) -> str:
    """A mask, one bit per bin, row by row, the first bin in the highest bit."""
    return _packed(np.packbits(mask.ravel()).tobytes())


def pack_numbers(values: Array) -> str:
    """Whole numbers from 0 to 2³² − 1 as four planes of bytes, the lowest bytes first.

    Example:
        >>> unpack(pack_numbers(np.array([1, 258]))).tolist()
        [1, 2, 0, 1, 0, 0, 0, 0]
    """
    planes = np.ascontiguousarray(values, "<u4").view(np.uint8).reshape(-1, 4)
    return _packed(planes.T.tobytes())


def pack_signed(values: Array) -> str:
    """Whole numbers of either sign, of which 0, −1, 1, −2 become 0, 1, 2, 3; see `pack_numbers`.

    Example:
        >>> unpack(pack_signed(np.array([0, -1, 1, -2]))).tolist()[:4]
        [0, 1, 2, 3]
    """
    return pack_numbers(np.where(values < 0, -2 * values - 1, 2 * values))


def pack_text(content: Any) -> str:
    """Content as JSON in UTF-8, packed."""
    return _packed(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode())


def unpack(text: str) -> UInt8Array:
    """The bytes that were packed.

    Example:
        >>> unpack(pack_mask(np.array([[True, False], [True, True]]))).tolist()
        [176]
    """
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)


def _packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 6)).decode()

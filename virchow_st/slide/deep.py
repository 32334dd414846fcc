"""Bits and transparency as the pixels use them, whatever the file says."""

from __future__ import annotations

from virchow_st.types import Array

_BITS = (8, 10, 12, 14, 16)
_LEAST_OPAQUE = 0.5  # of the type's maximum


def used_bits(largest: int) -> int:
    """How many bits deep pixels use: the fewest usual number that holds the largest value.

    A bright-field picture has glass or lumina near full brightness, so that its largest value
    tells how the camera's 10 to 16 bits were put into 16.
    """
    return next(bits for bits in _BITS if largest < 1 << bits)


def alpha_says_nothing(alpha: Array) -> str | None:
    """Why an alpha sample cannot be transparency, in words, or None where it can.

    Args:
        alpha: its values, of any shape, uint8 or uint16.
    """
    full = 255 if alpha.dtype.itemsize == 1 else 65_535
    low, high = int(alpha.min()), int(alpha.max())
    if high < _LEAST_OPAQUE * full:
        return (
            "the fourth sample says that every pixel is transparent; it is left out, and the "
            "colours are read as they are"
        )
    if low == high and high != full:
        return (
            "the fourth sample gives every pixel the same transparency; it is left out, and the "
            "colours are read as they are"
        )
    return None

"""Bit depth and transparency judged from the pixel values, as file headers are often wrong."""

from __future__ import annotations

from virchow_st.types import Array

_BITS = (8, 10, 12, 14, 16)
_LEAST_OPAQUE = 0.5  # of the type's maximum


def used_bits(largest: int) -> int:
    """Bits that pixels stored in 16 bits use: the smallest usual bit depth for the largest value.

    A bright-field image has glass or lumina near full brightness, so its largest value shows how
    many of the 16 bits the camera filled.

    Args:
        largest: the largest value among the pixels, 0 to 65,535.

    Example:
        >>> used_bits(4000)
        12
    """
    return next(bits for bits in _BITS if largest < 1 << bits)


def alpha_says_nothing(alpha: Array) -> str | None:
    """Explain why an alpha sample cannot be transparency.

    Args:
        alpha: its values, uint8 or uint16, of any shape.

    Returns:
        The reason, as a warning for the user; None if the values can be transparency.
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

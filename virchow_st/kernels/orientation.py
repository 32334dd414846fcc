"""The eight orientations of a square array: quarter turns and mirror images.

Orientation ``o`` flips left to right first where ``o >= 4``, and then makes ``o % 4``
counter-clockwise quarter turns; 0 leaves the array as it is.
"""

from __future__ import annotations

import numpy as np

from virchow_st.types import Array

N_ORIENTATIONS = 8
"""Four quarter turns, each with or without a flip."""


def quarter_turns(orientation: int) -> tuple[int, bool]:
    """Counter-clockwise quarter turns, and whether a left-right flip precedes them.

    Example:
        >>> quarter_turns(6)
        (2, True)
    """
    return orientation % 4, orientation >= 4


def turn(x: Array, orientation: int, axes: tuple[int, int] = (-2, -1)) -> Array:
    """Flip and turn the (row, col) axes of an array by one of the eight orientations.

    Args:
        x: any array.
        orientation: 0 to 7.
        axes: the (row, col) axes.

    Returns:
        A view of ``x``.

    Example:
        >>> import numpy as np
        >>> turn(np.array([[1, 2], [3, 4]]), 1).tolist()
        [[2, 4], [1, 3]]
    """
    k, flip = quarter_turns(orientation)
    flipped = np.flip(x, axes[1]) if flip else x
    return np.rot90(flipped, k, axes=axes)

"""Unit types, array aliases and the constants of the 2 µm lattice.

Coordinate frames used in all modules: arrays are indexed ``(row, col)``; slide coordinates are
``(x, y)`` with a suffix ``_px`` (full-resolution pixels) or ``_um``. Bin coordinates are
centre-based (an integer is the centre of a bin); pixel coordinates are corner-based (pixel ``i``
spans ``[i, i+1)``).
"""

from __future__ import annotations

from typing import Any, NewType

import numpy as np
from numpy.typing import NDArray

Microns = NewType("Microns", float)
Mpp = NewType("Mpp", float)  # µm per pixel
SlidePixels = NewType("SlidePixels", float)  # full-resolution pixels

Array = NDArray[Any]
BoolArray = NDArray[np.bool_]
UInt8Array = NDArray[np.uint8]
Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

BIN_UM = 2
"""Side of a Visium HD bin, µm."""
PATCH_BINS = 128
"""Side of a patch, bins."""
PATCH_UM = PATCH_BINS * BIN_UM
"""Side of a patch, µm."""
PATCH_POSITIONS = PATCH_BINS * PATCH_BINS
"""Number of bins in a patch; a position in the patch is ``row * PATCH_BINS + col``."""
CELL_BINS = 4
"""Side of an 8 µm bin, in 2 µm bins."""
BLOCK_BINS = 256
"""Side of the square blocks in which whole slides are stitched and written, bins."""
STORED_IMAGE_PX = 256
"""Side of the patch image in the store, px (1 µm/px)."""
SCALES_UM = (2, 4, 8, 16)
"""Bin sides at which rates are supervised and scored, µm."""

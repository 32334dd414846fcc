"""A slide's lattice of 2 µm bins and its place on the full-resolution image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from virchow_st.slide.geometry import Homography
from virchow_st.types import BIN_UM, BoolArray, Float64Array


@dataclass(frozen=True, eq=False)
class Lattice:
    """(R, C) bins of 2 µm, of which the first is (row0, col0) of the slide's grid.

    Attributes:
        name: of the slide, for messages.
        homography: from the slide's bins to full-resolution px.
        row0, col0: array_row and array_col of the first bin.
        tissue: (R, C) bool, True = tissue.
        size_px: width and height of the full-resolution image, where they are known.

    Example:
        >>> half_um = Homography(np.array([[4, 0, 2], [0, 4, 2], [0, 0, 1.0]]))
        >>> lattice = Lattice("P1", half_um, 8, 0, np.ones((16, 16), bool))
        >>> lattice.to_bins(np.array([[2.0, 34.0]])).tolist()  # centre of its first bin
        [[0.0, 0.0]]
        >>> lattice.to_um(np.array([[0.0, 0.0]])).tolist()
        [[1.0, 17.0]]
        >>> lattice.mpp
        0.5
    """

    name: str
    homography: Homography
    row0: int
    col0: int
    tissue: BoolArray
    size_px: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(R, C)."""
        rows, cols = self.tissue.shape
        return rows, cols

    @cached_property
    def mpp(self) -> float:
        """µm per full-resolution pixel in the middle of the lattice."""
        rows, cols = self.shape
        return float(self.homography.mpp_at(self.col0 + cols / 2, self.row0 + rows / 2))

    def to_bins(self, xy_px: Float64Array) -> Float64Array:
        """Map (n, 2) full-resolution px ``(x, y)`` to ``(col, row)`` counted from the first bin.

        Bin coordinates are centre-based, pixel coordinates corner-based.
        """
        col, row = self.homography.to_bins(xy_px[:, 0], xy_px[:, 1])
        return np.stack([col - self.col0, row - self.row0], axis=1)

    def to_px(self, col_row: Float64Array) -> Float64Array:
        """The inverse of `to_bins`."""
        x, y = self.homography.to_px(col_row[:, 0] + self.col0, col_row[:, 1] + self.row0)
        return np.stack([x, y], axis=1)

    def to_um(self, col_row: Float64Array) -> Float64Array:
        """Map ``(col, row)``, as of `to_bins`, to µm from the outer corner of bin (0, 0).

        This is the coordinate system ``global`` of fields and exports.
        """
        return BIN_UM * (col_row + 0.5 + [self.col0, self.row0])

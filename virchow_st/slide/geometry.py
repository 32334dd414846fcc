"""The homography from the bin grid to full-resolution pixels, and its affine fit inside a patch.

Bin coordinates are centre-based: ``(col, row) = (3.0, 5.0)`` is the centre of bin (row 5, col 3),
and its corners lie half a bin away. Pixel coordinates are corner-based: pixel ``i`` spans
``[i, i+1)``. The grid may lie mirrored, rotated or tilted on the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from virchow_st.types import BIN_UM, PATCH_BINS, Array, Float64Array, Mpp

_FIT_POINTS = 20_000
_RESIDUAL_BLOCK = 1 << 20
_AFFINE_GRID = 9  # points per side of the grid on which a patch's affine is fitted
_AREA_GRID = 33  # likewise for an area of many patches


@dataclass(frozen=True, eq=False)
class Homography:
    """Maps bins to full-resolution pixels: ``(x, y, 1) ~ matrix @ (col, row, 1)``.

    Attributes:
        matrix: (3, 3) float64 with ``matrix[2, 2] == 1``.
        residual_px: largest distance, px, between a measured position and the mapped one, over
            all bins that `fit` was given.
    """

    matrix: Float64Array
    residual_px: float = 0.0

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, np.float64)
        if matrix.shape != (3, 3) or matrix[2, 2] != 1 or not np.isfinite(matrix).all():
            raise ValueError(f"expected a finite (3, 3) matrix with [2, 2] = 1; got {matrix}")
        if np.linalg.det(matrix) == 0:
            raise ValueError(f"expected an invertible matrix; got {matrix}")
        matrix.flags.writeable = False
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def fit(cls, cols: Array, rows: Array, x_px: Array, y_px: Array) -> Homography:
        """Fit by the normalised direct linear transform (Hartley & Zisserman 2004, algorithm 4.2).

        Args:
            cols: (N,) array_col of bin centres, any integer or float dtype.
            rows: (N,) array_row, likewise.
            x_px: (N,) their full-resolution pixel positions, corner-based.
            y_px: (N,) likewise.

        Returns:
            The homography, fitted to a spread sample of up to 20,000 bins; ``residual_px`` is
            computed over all bins.

        Raises:
            ValueError: fewer than four points, or points that do not determine a homography.
        """
        if len(cols) < 4:
            raise ValueError(f"expected at least 4 bins; got {len(cols)}")
        pick = _spread(cols, rows)
        source, from_source = _normalised(cols[pick], rows[pick])
        target, from_target = _normalised(x_px[pick], y_px[pick])

        n = len(pick)
        design = np.zeros((2, n, 9))
        design[0, :, 0:3] = design[1, :, 3:6] = source
        design[0, :, 6:9] = -target[:, :1] * source
        design[1, :, 6:9] = -target[:, 1:2] * source
        _, singular, basis = np.linalg.svd(design.reshape(2 * n, 9), full_matrices=n < 5)
        if singular[7] < 1e-9 * singular[0]:
            raise ValueError("the bins lie on a line or a point")

        matrix = np.linalg.inv(from_target) @ basis[8].reshape(3, 3) @ from_source
        if abs(matrix[2, 2]) < 1e-12 * np.abs(matrix).max():
            raise ValueError("bin (0, 0) maps to infinity")
        fitted = cls(matrix / matrix[2, 2])
        return cls(fitted.matrix, fitted._largest_residual(cols, rows, x_px, y_px))

    def to_px(self, col: ArrayLike, row: ArrayLike) -> tuple[Float64Array, Float64Array]:
        """Map centre-based bin coordinates to corner-based full-resolution ``(x, y)`` px."""
        return _project(self.matrix, col, row)

    def to_bins(self, x_px: ArrayLike, y_px: ArrayLike) -> tuple[Float64Array, Float64Array]:
        """Map corner-based full-resolution px to centre-based bin coordinates ``(col, row)``."""
        return _project(np.linalg.inv(self.matrix), x_px, y_px)

    def mpp_at(self, col: float, row: float) -> Mpp:
        """µm per pixel around a bin: 2 µm over the square root of the bin's area in px."""
        (h00, h01, _), (h10, h11, _), (h20, h21, _) = self.matrix
        x, y = self.to_px(col, row)
        w = h20 * col + h21 * row + 1.0
        # d(x, y)/d(col, row) of x = (h00 col + h01 row + h02) / w, likewise y.
        area = ((h00 - x * h20) * (h11 - y * h21) - (h01 - x * h21) * (h10 - y * h20)) / w**2
        return Mpp(float(BIN_UM / np.sqrt(np.abs(area))))

    def patch_corners_px(self, row0: int, col0: int) -> Float64Array:
        """Corners of a patch in full-resolution px.

        Args:
            row0: array_row of the patch's first bin.
            col0: array_col of the patch's first bin.

        Returns:
            (4, 2) float64 ``(x, y)`` of its top left, top right, bottom right and bottom left as
            seen in the bin frame (row down, col right), at the outer edges of the outer bins.
        """
        left, top = col0 - 0.5, row0 - 0.5
        right, bottom = left + PATCH_BINS, top + PATCH_BINS
        x, y = self.to_px([left, right, right, left], [top, top, bottom, bottom])
        return np.stack([x, y], axis=1)

    def patch_affine(self, row0: int, col0: int, size_px: int) -> Float64Array:
        """The affine map that approximates the homography inside one patch.

        It is a least-squares fit over a grid of points in the patch; on real slides it deviates
        from the homography by less than 0.01 px.

        Args:
            row0: array_row of the patch's first bin.
            col0: array_col of the patch's first bin.
            size_px: side of the patch image, px.

        Returns:
            (2, 3) float64: ``(x, y) = A @ (u, v, 1)`` from patch pixels (u right along col, v down
            along row, corner-based, 0 to ``size_px``) to full-resolution px, corner-based.
        """
        side = np.linspace(0.0, size_px, _AFFINE_GRID)
        u, v = (a.ravel() for a in np.meshgrid(side, side))
        bins_per_px = PATCH_BINS / size_px
        x, y = self.to_px(col0 - 0.5 + u * bins_per_px, row0 - 0.5 + v * bins_per_px)
        # Offsets from the middle keep the design well conditioned and the fit exact to 1e-10 px.
        middle = size_px / 2
        design = np.stack([u - middle, v - middle, np.ones_like(u)], axis=1)
        affine = np.linalg.lstsq(design, np.stack([x, y], axis=1), rcond=None)[0].T
        affine[:, 2] -= affine[:, :2].sum(axis=1) * middle
        return affine

    def um_to_px(self, row0: int, col0: int, rows: int, cols: int) -> tuple[Float64Array, float]:
        """The affine map that approximates the homography over an area of the lattice.

        Args:
            row0, col0: first bin of the area.
            rows, cols: its size in bins.

        Returns:
            (2, 3) float64 from ``(x, y, 1)`` in µm, x along array_col and y along array_row from
            the outer corner of bin (0, 0), to full-resolution px; and its largest error, px.

        Example:
            >>> quarter_um = Homography(np.array([[8, 0, 4], [0, 8, 4], [0, 0, 1.0]]))
            >>> affine, error_px = quarter_um.um_to_px(0, 0, 128, 128)
            >>> np.abs(affine).round(6).tolist(), error_px < 1e-9  # a zero has no sign
            ([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]], True)
        """
        col, row = (
            grid.ravel()
            for grid in np.meshgrid(
                col0 + np.linspace(0, cols, _AREA_GRID), row0 + np.linspace(0, rows, _AREA_GRID)
            )
        )
        px = np.stack(self.to_px(col - 0.5, row - 0.5), axis=1)  # edges, half a bin from centres
        xy_um = BIN_UM * np.stack([col, row], axis=1)
        middle = xy_um.mean(axis=0)  # keeps the design well conditioned
        design = np.column_stack([xy_um - middle, np.ones(len(xy_um))])
        affine: Float64Array = np.linalg.lstsq(design, px, rcond=None)[0].T
        affine[:, 2] -= affine[:, :2] @ middle
        error = px - (xy_um @ affine[:, :2].T + affine[:, 2])
        return affine, float(np.hypot(*error.T).max())

    def _largest_residual(self, cols: Array, rows: Array, x_px: Array, y_px: Array) -> float:
        worst = 0.0
        for start in range(0, len(cols), _RESIDUAL_BLOCK):
            block = slice(start, start + _RESIDUAL_BLOCK)
            x, y = self.to_px(cols[block], rows[block])
            worst = max(worst, float(np.hypot(x - x_px[block], y - y_px[block]).max()))
        return worst


def _project(matrix: Array, a: ArrayLike, b: ArrayLike) -> tuple[Float64Array, Float64Array]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    u, v, w = (m[0] * a + m[1] * b + m[2] for m in matrix)
    return u / w, v / w


def _spread(cols: Array, rows: Array) -> Array:
    """Indices of up to 20,000 points: a seeded random sample, and the four extreme corners."""
    n = len(cols)
    if n <= _FIT_POINTS:
        return np.arange(n)
    down, up = cols.astype(np.int64) + rows, cols.astype(np.int64) - rows
    extremes = [down.argmin(), down.argmax(), up.argmin(), up.argmax()]
    sample = np.random.default_rng(0).choice(n, _FIT_POINTS, replace=False)
    return np.concatenate([extremes, sample])


def _normalised(a: Array, b: Array) -> tuple[Float64Array, Float64Array]:
    """Points centred with mean distance √2, homogeneous (N, 3), and the (3, 3) transform."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    middle_a, middle_b = a.mean(), b.mean()
    distance = np.hypot(a - middle_a, b - middle_b).mean()
    if not distance > 0:
        raise ValueError("the bins or their pixel positions lie on one point")
    s = np.sqrt(2) / distance
    transform = np.array([[s, 0, -s * middle_a], [0, s, -s * middle_b], [0, 0, 1]])
    return np.stack([a, b, np.ones_like(a)], axis=1) @ transform.T, transform

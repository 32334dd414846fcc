"""Writes a rate field block by block; docs/field-format.md has the layout."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from virchow_st.errors import FieldError
from virchow_st.field.bins import CELL_UM, KEPT_BITS, BinImages
from virchow_st.field.he_image import add_picture
from virchow_st.field.loadings import Loadings
from virchow_st.field.ngff import Folder
from virchow_st.field.table import write_loadings
from virchow_st.kernels.pooling import pool_mask
from virchow_st.runtime.atomic import check_absent, new_output
from virchow_st.types import BIN_UM, CELL_BINS, BoolArray, Float32Array, Float64Array, UInt8Array

FORMAT = "virchow_st.field/1"
ABOUT, PROVENANCE, COVERED, TISSUE = "virchow_st_field", "virchow_st", "covered", "tissue"
"""Names of the folder's attributes and labels."""
MAPS = "factors", "rates"
"""What the maps are called; ``rates`` where genes are held directly."""
FACTOR_BITS = 10
"""Binary digits of factors, of the 23 of a float32's mantissa."""

Block = tuple[int, int, Float32Array, BoolArray]
"""First row and column of a block, its maps (K, h, w), and the bins with values (h, w) bool."""


class FieldMaps:
    """The maps, the loadings and the covered area of a field that is being written.

    Only the block that is being written is held in memory, and one byte per 8 µm bin.

    Args:
        folder: the Zarr folder to write to.
        loadings: of the genes on the K maps.
        shape: rows and columns of the 2 µm grid, multiples of 8.
    """

    def __init__(self, folder: Folder, loadings: Loadings, shape: tuple[int, int]) -> None:
        self._folder, self._loadings = folder, loadings
        self._maps = MAPS[loadings.is_direct]
        bits = KEPT_BITS if loadings.is_direct else FACTOR_BITS
        self._images = BinImages(
            folder, self._maps, loadings.factor_names, shape, bits=bits,
            by_channel=loadings.is_direct,
        )  # fmt: skip
        self._covered: UInt8Array = np.zeros([n // CELL_BINS for n in shape], np.uint8)

    def write(
        self,
        row0: int,
        col0: int,
        maps: Float32Array,
        there: BoolArray,
        at_8um: Float32Array | None = None,
    ) -> None:
        """Write a block that begins at bin (row0, col0), preferably one of `BLOCK_BINS`.

        Args:
            row0, col0: multiples of 8, counted from the field's corner.
            maps: (K, h, w) float32, UMIs per 2 µm bin; NaN where not ``there``.
            there: (h, w) bool, whole 8 µm bins.
            at_8um: (K, h / 4, w / 4); the sums of ``maps`` if None.

        Raises:
            FieldError: a factor is negative, or a value that is there is not finite.
            ValueError: the block has another shape, or cuts an 8 µm bin.
        """
        expected = self._loadings.n_factors, *there.shape
        if maps.shape != expected:
            raise ValueError(f"block: expected maps of shape {expected}; got {maps.shape}")
        cells = pool_mask(there, CELL_BINS)
        if there.sum() != cells.sum() * CELL_BINS**2:
            raise ValueError("block: expected whole 8 µm bins; got parts of some")
        if not np.isnan(maps[:, ~there]).all():
            raise ValueError("block: expected NaN where nothing is there; got values")
        self._check(maps, there)
        self._images.write(row0, col0, maps, at_8um)
        row, col = row0 // CELL_BINS, col0 // CELL_BINS
        self._covered[row : row + cells.shape[0], col : col + cells.shape[1]] = cells

    def _check(self, maps: Float32Array, there: BoolArray) -> None:
        for name, values in zip(self._loadings.factor_names, maps, strict=True):
            low, high = (f(values, where=there, initial=0) for f in (np.min, np.max))
            if not (np.isfinite(low) and np.isfinite(high)):
                raise FieldError(f"{name}: expected finite values; got {low:.4g} to {high:.4g}")
            if low < 0 and not self._loadings.is_direct:
                raise FieldError(f"{name}: expected a factor of at least 0; got {low:.4g}")

    def finish(self, provenance: dict[str, Any]) -> None:
        """Write the covered area, the loadings and the attributes, which make it a field."""
        covered = self._folder.add_labels(COVERED, self._covered.shape, CELL_UM)
        covered[:] = self._covered
        write_loadings(self._folder.root, self._loadings)
        about = {"format": FORMAT, "maps": self._maps, "bin_um": BIN_UM}
        self._folder.finish(**{PROVENANCE: provenance, ABOUT: about})


def write_field(
    out: Path,
    blocks: Iterable[Block],
    loadings: Loadings,
    tissue: BoolArray,
    provenance: dict[str, Any],
    *,
    picture: tuple[UInt8Array, float] | None = None,
    corner_um: tuple[float, float] = (0.0, 0.0),
    um_to_px: Float64Array | None = None,
) -> None:
    """Write a whole field from an iterator of blocks, completely or not at all.

    Args:
        out: folder to write.
        blocks: each once, in any order, at multiples of `virchow_st.types.BLOCK_BINS`; where none
            comes, the field has no values.
        loadings: of the genes on the K maps.
        tissue: (R, C) bool on the 2 µm grid, whose sides are multiples of 8.
        provenance: where the field came from; anything that JSON takes.
        picture: (H, W, 3) uint8 RGB whose corner is the field's, and its µm/px.
        corner_um: ``(x, y)`` of the field's top left corner.
        um_to_px: (2, 3) affine from ``(x, y, 1)`` in µm to px of the original image.

    Raises:
        ConfigError: ``out`` is there already, or is being written.
        FieldError, ValueError: see `FieldMaps.write`.
    """
    check_absent(out)
    with new_output(out) as aside:
        folder = Folder(aside / "result", "spatialdata", {}, corner_um, um_to_px)
        if picture is not None:
            rgb, um_per_px = picture
            levels = add_picture(folder, rgb.shape[0], rgb.shape[1], um_per_px)
            levels.write(0, rgb)
            levels.fill_coarser()
        folder.add_labels(TISSUE, tissue.shape, BIN_UM)[:] = tissue
        maps = FieldMaps(folder, loadings, (tissue.shape[0], tissue.shape[1]))
        for block in blocks:
            maps.write(*block)
        maps.finish(provenance)

"""Writes a rate field block by block; docs/field-format.md has the layout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from virchow_st.errors import FieldError
from virchow_st.field.bins import KEPT_BITS, BinImages
from virchow_st.field.he_image import add_picture
from virchow_st.field.interval import RateErrors, write_errors
from virchow_st.field.loadings import Loadings
from virchow_st.field.ngff import Folder, remove_chunk
from virchow_st.field.table import NAME, write_loadings
from virchow_st.runtime.atomic import check_absent, new_output
from virchow_st.types import (
    BIN_UM,
    BLOCK_BINS,
    Array,
    BoolArray,
    Float32Array,
    Float64Array,
    UInt8Array,
)

FORMAT = "virchow_st.field/1"
ABOUT, PROVENANCE, COVERED, TISSUE = "virchow_st_field", "virchow_st", "covered", "tissue"
FAILED = "failed"
"""Names of the folder's attributes and labels."""
SOURCES, SOURCE_NAMES = "sources", ("own counts", "neighbours", "image")
"""Name of the image of what rates rest on, and of its channels."""
MAPS = "factors", "rates"
"""What the maps are called; ``rates`` where genes are held directly."""
FACTOR_BITS = 10
"""Binary digits of factors, of the 23 of a float32's mantissa."""
_SHARE_BITS = 7  # of the shares of sources: to half a per cent of themselves

Block = tuple[int, int, Float32Array]
"""First row and column of a block, and its maps (K, h, w)."""


SourceBlock = tuple[int, int, Float32Array, Float32Array]
"""First row and column of a block, and its shares (3, h, w) at 2 µm and (3, h / 4, w / 4) at 8."""


class FieldMaps:
    """The maps, the loadings and the covered area of a field that is being written.

    Only the block that is being written is held in memory.

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
        self._covered = folder.add_labels(COVERED, shape, BIN_UM, chunk=BLOCK_BINS)

    def write(
        self, row0: int, col0: int, maps: Float32Array, at_8um: Float32Array | None = None
    ) -> None:
        """Write a block that begins at bin (row0, col0), preferably one of `BLOCK_BINS`.

        Args:
            row0, col0: multiples of 8, counted from the field's corner.
            maps: (K, h, w) float32, UMIs per 2 µm bin; NaN in all maps where the field has no
                value.
            at_8um: (K, h / 4, w / 4); the sums of ``maps`` if None.

        Raises:
            FieldError: a factor is negative, a value infinite, or a bin NaN in some maps alone.
            ValueError: the block has another number of maps.
        """
        if len(maps) != self._loadings.n_factors:
            raise ValueError(f"block: expected {self._loadings.n_factors} maps; got {len(maps)}")
        covered = ~np.isnan(maps[0])
        self._check(maps, covered)
        self._images.write(row0, col0, maps, at_8um)
        rows, cols = covered.shape
        self._covered[row0 : row0 + rows, col0 : col0 + cols] = covered

    def remove(self, row0: int, col0: int) -> None:
        """Remove a block from the disk, whatever state its files are in."""
        self._images.remove(row0, col0)
        remove_chunk(self._covered, row0, col0)

    def read(self, row0: int, col0: int, shape: tuple[int, int]) -> Iterator[Array]:
        """A block as it lies on disk: maps of every level, and the covered bins."""
        yield from self._images.read(row0, col0, shape)
        yield np.asarray(self._covered[row0 : row0 + shape[0], col0 : col0 + shape[1]])

    def _check(self, maps: Float32Array, covered: BoolArray) -> None:
        for name, values in zip(self._loadings.factor_names, maps, strict=True):
            there = values[covered]
            low, high = (there.min(), there.max()) if there.size else (0.0, 0.0)
            if not (np.isfinite(low) and np.isfinite(high)):
                raise FieldError(f"{name}: expected finite values; got {low:.4g} to {high:.4g}")
            if low < 0 and not self._loadings.is_direct:
                raise FieldError(f"{name}: expected a factor of at least 0; got {low:.4g}")
            if there.size + np.isnan(values).sum() != values.size:
                raise FieldError(f"{name}: expected NaN in the bins where another map is NaN")

    def finish(self, provenance: dict[str, Any], errors: RateErrors | None = None) -> None:
        """Write the loadings, the rates' errors and the attributes, which make it a field."""
        write_loadings(self._folder.root, self._loadings)
        if errors is not None:
            write_errors(self._folder.root[f"tables/{NAME}"], errors)
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
    failed: BoolArray | None = None,
    sources: Iterable[SourceBlock] | None = None,
    errors: RateErrors | None = None,
) -> None:
    """Write a whole field from an iterator of blocks, completely or not at all.

    Args:
        out: folder to write.
        blocks: each once, in any order, at multiples of `virchow_st.types.BLOCK_BINS`; where none
            comes, the field has no values.
        loadings: of the genes on the K maps.
        tissue: (R, C) bool on the 2 µm grid, whose sides are multiples of 8.
        provenance: origin of the field; anything that JSON takes.
        picture: (H, W, 3) uint8 RGB whose corner is the field's, and its µm/px.
        corner_um: ``(x, y)`` of the field's top left corner.
        um_to_px: (2, 3) affine from ``(x, y, 1)`` in µm to px of the original image.
        failed: (R, C) bool, True in tissue bins without counts, whose rates were filled in.
        sources: blocks of what the rates rest on, as `Field.sources` returns it.
        errors: of the rates, from which `Field.interval` computes.

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
        if failed is not None:
            folder.add_labels(FAILED, failed.shape, BIN_UM)[:] = failed
        shape = tissue.shape[0], tissue.shape[1]
        if sources is not None:
            write_sources(folder, shape, sources)
        maps = FieldMaps(folder, loadings, shape)
        for block in blocks:
            maps.write(*block)
        maps.finish(provenance, errors)


def write_sources(folder: Folder, shape: tuple[int, int], blocks: Iterable[SourceBlock]) -> None:
    """Write what the rates of a field of (R, C) bins rest on, block by block."""
    images = BinImages(folder, SOURCES, SOURCE_NAMES, shape, bits=_SHARE_BITS, by_channel=False)
    for block in blocks:
        images.write(*block)

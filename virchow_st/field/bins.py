"""Maps of 2 µm bins as images of a Zarr folder, and the same maps at 8 µm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import zarr

from virchow_st.field.ngff import Folder, remove_chunk
from virchow_st.kernels.pooling import sum_pool
from virchow_st.types import BIN_UM, BLOCK_BINS, CELL_BINS, Float32Array

LEVELS = 4
"""Pyramid levels at 2 µm; the sides of a map are multiples of ``2 ** (LEVELS - 1)`` bins."""
CELL_UM = BIN_UM * CELL_BINS
KEPT_BITS = 13
"""Binary digits of rates, of the 23 of a float32's mantissa."""


class BinImages:
    """``NAME_2um`` and ``NAME_8um``: values of 2 µm bins and of 8 µm bins, genes as channels.

    At 2 µm a pixel is the value of a 2 µm bin, and coarser pyramid levels are means, so that a gene
    looks the same at any zoom. At 8 µm a pixel is the value of an 8 µm bin. Bins that are never
    written are NaN.

    Args:
        folder: the Zarr folder to write to.
        name: of the images, ``rates`` or ``counts``.
        channels: names of the genes, without duplicates.
        shape: rows and columns of the 2 µm grid, multiples of 8.
        exact: values are whole numbers, as counts are, and are kept so.
        bits: to which others are rounded, see `rounded`.
        by_channel: see `Folder.add_image`; False where channels are always read together.
    """

    def __init__(
        self,
        folder: Folder,
        name: str,
        channels: Sequence[str],
        shape: tuple[int, int],
        exact: bool = False,
        bits: int = KEPT_BITS,
        by_channel: bool = True,
    ) -> None:
        self._exact, self._bits = exact, bits
        self._fine = folder.add_image(
            f"{name}_2um", channels, shape, BIN_UM, LEVELS, dtype="float32",
            chunk=BLOCK_BINS, fill=np.nan, brightest=1, in_blocks=True, by_channel=by_channel,
        )  # fmt: skip
        coarse_shape = shape[0] // CELL_BINS, shape[1] // CELL_BINS
        (self._coarse,) = folder.add_image(
            f"{name}_8um", channels, coarse_shape, CELL_UM, 1, dtype="float32",
            chunk=BLOCK_BINS // CELL_BINS, fill=np.nan, brightest=4, in_blocks=True,
            by_channel=by_channel,
        )  # fmt: skip

    def write(
        self, row0: int, col0: int, at_2um: Float32Array, at_8um: Float32Array | None = None
    ) -> None:
        """Write a block that begins at bin (row0, col0), preferably one of `BLOCK_BINS`.

        Args:
            row0, col0: multiples of 8, counted from the image's corner.
            at_2um: (G, h, w).
            at_8um: (G, h / 4, w / 4); the sums of ``at_2um`` if None.
        """
        for level, array in enumerate(self._fine):
            factor = 1 << level
            mean = at_2um if level == 0 else sum_pool(at_2um, factor) / factor**2
            at = row0 // factor, col0 // factor
            _put(array, *at, mean if self._exact and level == 0 else rounded(mean, self._bits))
        at_8um = sum_pool(at_2um, CELL_BINS) if at_8um is None else at_8um
        at_8um = at_8um if self._exact else rounded(at_8um, self._bits)
        _put(self._coarse, row0 // CELL_BINS, col0 // CELL_BINS, at_8um)

    def remove(self, row0: int, col0: int) -> None:
        """Remove a block of `BLOCK_BINS` from the disk, whatever state its files are in."""
        factors = [1 << level for level in range(len(self._fine))]
        for array, factor in zip((*self._fine, self._coarse), (*factors, CELL_BINS), strict=True):
            remove_chunk(array, 0, row0 // factor, col0 // factor)

    def read(self, row0: int, col0: int, shape: tuple[int, int]) -> Iterator[Float32Array]:
        """A block as it lies on disk: every pyramid level at 2 µm, then 8 µm.

        Args:
            row0, col0: first bin.
            shape: rows and columns of the block, bins.
        """
        factors = [1 << level for level in range(len(self._fine))]
        for array, factor in zip((*self._fine, self._coarse), (*factors, CELL_BINS), strict=True):
            row, col, h, w = (n // factor for n in (row0, col0, *shape))
            yield np.asarray(array[:, row : row + h, col : col + w])


def _put(array: zarr.Array, row: int, col: int, values: Float32Array) -> None:
    _, h, w = values.shape
    array[:, row : row + h, col : col + w] = values


def rounded(values: Float32Array, kept_bits: int = KEPT_BITS) -> Float32Array:
    """Round float32 to some binary digits of its mantissa, which compress to half the space.

    With 13 the relative error is at most 6e-5, with 10, as of a float16, 4.9e-4. Integers below
    2 to the power of one digit more are unchanged.

    >>> rounded(np.array([16383, 0.1], np.float32)).tolist()
    [16383.0, 0.0999984741210937...]
    """
    dropped = 23 - kept_bits
    bits = np.asarray(values, np.float32).view(np.uint32)
    bits = bits + np.uint32(1 << (dropped - 1))
    bits &= np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    found = bits.view(np.float32)
    found[np.isnan(values)] = np.nan
    return found

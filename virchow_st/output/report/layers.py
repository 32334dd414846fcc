"""Maps and H&E of a slide as image pyramids for a viewer in the browser.

All layers of a slide cover the same area: the maps' bins, padded to whole 16 µm squares, so that
the levels of a pyramid align exactly. Rows run down and columns to the right, as in the maps.

A map is an 8-bit PNG with a palette. Index 0 is transparent: no tissue, or not scored. Index i > 0
stands for ``top * ((i - 1) / 254) ** 2`` UMIs per bin of the map's scale, where ``top`` is the
largest value of prediction and observation: steps are fine where rates are small, and no value is
clipped. The palette holds the colours of a scale that prediction and observation share for all bin
sizes, as in the figures: colours show densities, UMIs per 64 µm².
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import cv2
import numpy as np

from virchow_st.output.figures.rasters import UNIT_BINS, shared_limit, sum_bins
from virchow_st.output.figures.style import rate_colours
from virchow_st.types import (
    BIN_UM,
    SCALES_UM,
    Array,
    BoolArray,
    Float32Array,
    Float64Array,
    UInt8Array,
)

STEPS = 254
"""Number of steps of the palette above index 1, which stands for 0 UMIs."""
TILE_PX = 512
_JPEG_QUALITY = 82
_COARSEST_BINS = SCALES_UM[-1] // BIN_UM
_PX_PER_BIN = 2  # of the stored image, 1 µm/px

What = Literal["observed", "predicted"]


@dataclass(frozen=True)
class GeneMaps:
    """One gene on one slide.

    Attributes:
        limit: upper end of the colour scale, UMIs per 64 µm².
        tops: by scale in µm, UMIs per bin that the palette's last index stands for.
        pictures: PNGs by scale in µm and by what they show.
    """

    limit: float
    tops: dict[int, float]
    pictures: dict[tuple[int, What], bytes]


def padded_shape(mask: BoolArray) -> tuple[int, int]:
    """Rows and columns of 2 µm bins that every layer of a slide covers."""
    rows, cols = (-(-n // _COARSEST_BINS) * _COARSEST_BINS for n in mask.shape)
    return rows, cols


def gene_maps(
    rate: Float32Array, counts: Array, mask: BoolArray, scales: Sequence[int]
) -> GeneMaps:
    """Draw one gene at some scales.

    Args:
        rate, counts: (R, C) per 2 µm bin.
        mask: (R, C) bool, True for scored bins. A coarser bin is scored if all its 2 µm bins are,
            as in metrics and figures.
        scales: bin sizes in µm.
    """
    limit = shared_limit([(rate, mask)], [(counts, mask)])
    values: dict[What, Array] = {
        "observed": np.where(mask, counts, 0),
        "predicted": np.where(mask, rate, 0),
    }
    tops: dict[int, float] = {}
    pictures: dict[tuple[int, What], bytes] = {}
    for scale in scales:
        factor = scale // BIN_UM
        known = sum_bins(_padded(mask), factor) == factor**2
        sums = {what: sum_bins(_padded(v), factor) * known for what, v in values.items()}
        top = max(float(s.max()) for s in sums.values()) or 1.0
        colours = _palette(top, limit * factor**2 / UNIT_BINS)
        for what, umis in sums.items():
            pictures[scale, what] = _png(_indices(umis, known, top), colours)
        tops[scale] = top
    return GeneMaps(limit, tops, pictures)


def image_tiles(
    image: UInt8Array, levels_left_out: int = 0
) -> Iterator[tuple[int, int, int, bytes]]:
    """Cut the H&E image into a pyramid of JPEG tiles for the viewer.

    Args:
        image: (2R, 2C, 3) RGB, 1 µm/px.
        levels_left_out: how many of the finest levels to skip; each halves the resolution.

    Yields:
        (level, column, row, JPEG), level 0 the coarsest; tiles are `TILE_PX` wide and high, except
        the last ones of a row and of a column.
    """
    levels = image_levels(image.shape, levels_left_out)
    multiple = _PX_PER_BIN * _COARSEST_BINS
    size = [(0, -n % multiple) for n in image.shape[:2]]
    at = np.pad(image, (*size, (0, 0)), constant_values=255)
    for _ in range(levels_left_out):
        at = _halved(at)
    for level in reversed(range(levels)):
        height, width = at.shape[:2]
        for row in range(-(-height // TILE_PX)):
            for col in range(-(-width // TILE_PX)):
                tile = at[row * TILE_PX : (row + 1) * TILE_PX, col * TILE_PX : (col + 1) * TILE_PX]
                yield level, col, row, _jpeg(tile)
        if level:
            at = _halved(at)


def image_levels(shape: tuple[int, ...], levels_left_out: int = 0) -> int:
    """Number of levels of the pyramid of an image of shape (height, width, …)."""
    multiple = _PX_PER_BIN * _COARSEST_BINS
    sides = [-(-n // multiple) * multiple for n in shape[:2]]
    sides = [n >> levels_left_out for n in sides]
    levels = 1
    # Levels have to align exactly, so a side that cannot be halved exactly ends the pyramid.
    while max(sides) > TILE_PX and not any(n % 2 for n in sides):
        sides = [n // 2 for n in sides]
        levels += 1
    return levels


@cache
def colour_stops(n: int = 256) -> list[str]:
    """``n`` colours from 0 UMIs to the limit, as ``#rrggbb``."""
    rgb = rate_colours()(np.linspace(0, 1, n), bytes=True)[:, :3]
    return ["#" + bytes(colour).hex() for colour in rgb.tolist()]


def _padded(values: Array) -> Array:
    rows, cols = (-n % _COARSEST_BINS for n in values.shape)
    return np.pad(values, ((0, rows), (0, cols)))


def _indices(umis: Float64Array, known: BoolArray, top: float) -> UInt8Array:
    # A decoder trained on squared error may predict values below 0.
    steps = np.rint(STEPS * np.sqrt(np.maximum(umis, 0) / top))
    return np.where(known, 1 + steps, 0).astype(np.uint8)


def _palette(top: float, limit: float) -> UInt8Array:
    """(256, 3) RGB; ``limit`` is in the unit of ``top``, UMIs per bin of the map."""
    umis = top * (np.arange(STEPS + 1) / STEPS) ** 2
    colours = rate_colours()(np.minimum(umis / limit, 1.0), bytes=True)[:, :3]
    return np.vstack([np.zeros((1, 3), np.uint8), colours])


def _png(indices: UInt8Array, palette: UInt8Array) -> bytes:
    """A PNG of (H, W) palette indices, index 0 transparent, with unfiltered rows.

    Unfiltered rows are at most a tenth larger than with the best filter. The page can then read the
    indices by inflating the data; browsers may alter what a canvas returns, to prevent tracking.
    """
    height, width = indices.shape
    rows = np.zeros((height, 1 + width), np.uint8)  # each begins with its filter: 0, none
    rows[:, 1:] = indices
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"PLTE", palette.tobytes()),
        (b"tRNS", b"\0"),
        (b"IDAT", zlib.compress(rows.tobytes(), 6)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


def _halved(image: UInt8Array) -> UInt8Array:
    height, width = image.shape[:2]
    # With half the size, INTER_AREA averages whole squares of four pixels.
    half = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return half.astype(np.uint8, copy=False)


def _jpeg(image: UInt8Array) -> bytes:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, coded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return coded.tobytes()

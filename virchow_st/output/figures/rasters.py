"""Maps and images prepared for drawing: summed to bins, cut to windows, in one unit.

Rates add, so the density of a gene does not depend on the bin size. Every map is therefore drawn in
one unit, UMIs per 64 µm² (the area of an 8 µm bin), and all compared maps share one colour scale.
Panels can be compared by eye across scales, and a map that is printed smaller is averaged without
becoming darker. A single UMI in a 2 µm bin is 16 in this unit and appears as a dot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from virchow_st.run.hdf5 import Window
from virchow_st.types import Array, BoolArray, Float64Array, UInt8Array

UNIT_BINS = 16  # 2 µm bins in 64 µm²
WINDOW_BINS = 128  # side of an enlarged square, 256 µm
_WINDOW_STEP = 8  # bins; a multiple of 4, so that the square cuts no 8 µm bin

Masked = tuple[Array, BoolArray]
"""A map (R, C) and its scored bins, (R, C) bool."""


def sum_bins(values: Array, factor: int) -> Float64Array:
    """Sum (R, C) over squares of ``factor`` bins to (⌈R/factor⌉, ⌈C/factor⌉), keeping the total.

    Squares of the last row or column that the map does not fill sum the bins that exist.

    >>> sum_bins(np.ones((3, 4), np.float32), 2)
    array([[4., 4.],
           [2., 2.]])
    """
    rows, cols = values.shape
    padded = np.pad(values, ((0, -rows % factor), (0, -cols % factor)))
    blocks = padded.reshape(padded.shape[0] // factor, factor, padded.shape[1] // factor, factor)
    return blocks.sum(axis=(1, 3), dtype=np.float64)


def density(values: Array, mask: BoolArray, factor: int) -> np.ma.MaskedArray:
    """UMIs per 64 µm² in squares of ``factor`` 2 µm bins; masked unless every bin is scored.

    Metrics score coarse bins by the same rule, so no score includes a grey bin.

    >>> counts, scored = np.eye(4), np.ones((4, 4), bool)
    >>> scored[3, 3] = False
    >>> print(density(counts, scored, 2))  # 2 UMIs in 16 µm² are 8 in 64 µm²
    [[8.0 0.0]
     [0.0 --]]
    """
    known = sum_bins(mask, factor) == factor**2
    umis = sum_bins(np.where(mask, values, 0), factor)
    return np.ma.MaskedArray((umis * (UNIT_BINS / factor**2)).astype(np.float32), ~known)


def strongest_window(counts: Array, side: int = WINDOW_BINS) -> Window:
    """The square of ``side`` bins with the most observed UMIs, on a 16 µm raster.

    It is chosen by the observation only, so that the choice does not favour the prediction.
    """
    cells = sum_bins(counts, _WINDOW_STEP)
    height, width = (min(side // _WINDOW_STEP, n) for n in cells.shape)
    integral = np.pad(cells.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    rows = integral[height:] - integral[:-height]
    sums = rows[:, width:] - rows[:, :-width]
    best = np.unravel_index(int(sums.argmax()), sums.shape)
    sizes = [min(side, n) for n in counts.shape]
    last = [(n - size) // 4 * 4 for n, size in zip(counts.shape, sizes, strict=True)]
    row, col = (min(int(b) * _WINDOW_STEP, end) for b, end in zip(best, last, strict=True))
    return Window(row, col, *sizes)


def strongest(windows: Sequence[Window], counts: Array, n: int) -> list[Window]:
    """The ``n`` windows with the most observed UMIs, in falling order, without empty ones."""
    sums = [int(window.cut(counts).sum(dtype=np.int64)) for window in windows]
    order = sorted(range(len(windows)), key=lambda i: (-sums[i], i))
    return [windows[i] for i in order[:n] if sums[i] > 0]


def shared_limit(predicted: Sequence[Masked], observed: Sequence[Masked]) -> float:
    """Upper end of the colour scale that these maps share, UMIs per 64 µm².

    It is the larger of the 99.5th percentiles of the predictions at 8 µm and of the observations at
    16 µm. With four times the UMIs, tissue rather than Poisson noise determines the latter.

    Args:
        predicted: rates (R, C) and scored bins (R, C) of each map.
        observed: counts (R, C) and scored bins (R, C) of each map.
    """
    tops = []
    for maps, factor in ((predicted, 4), (observed, 8)):
        cells = np.concatenate(
            [density(values, mask, factor).compressed() for values, mask in maps]
        )
        tops += [float(np.percentile(cells, 99.5))] if cells.size else []
    return max(tops, default=0.0) or 1.0  # a gene without a single UMI still needs a scale


def shrink(image: UInt8Array, longest: int) -> UInt8Array:
    """Average (H, W, 3) over whole squares until neither side is above ``longest`` pixels."""
    f = math.ceil(max(image.shape[:2]) / longest)
    h, w = (f * max(1, n // f) for n in image.shape[:2])
    total = np.zeros((len(range(0, h, f)), len(range(0, w, f)), 3), np.uint32)
    for i in range(f):
        for j in range(f):
            total += image[i:h:f, j:w:f]
    return (total // f**2).astype(np.uint8)


def lightened(image: UInt8Array) -> UInt8Array:
    """Lightened luminance (H, W, 3), a background on which colours are visible."""
    grey = image @ np.array([0.299, 0.587, 0.114])
    return np.repeat((127 + grey / 2).astype(np.uint8)[..., None], 3, axis=2)

"""Cells of a test slide, coloured by a gene: prediction beside observation, over H&E."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from virchow_st.errors import ConfigError
from virchow_st.output.figures import style
from virchow_st.output.figures.panels import (
    FINEST_CELLS,
    UNIT,
    colour_bar,
    decimals,
    draw_stain,
    frame,
    is_lower_left,
    mark,
)
from virchow_st.output.figures.rasters import (
    UNIT_BINS,
    Window,
    lightened,
    shrink,
    strongest_window,
    sum_bins,
)
from virchow_st.output.figures.style import Picture
from virchow_st.run.maps import SlideResult
from virchow_st.types import BIN_UM, Array, BoolArray, Float32Array, Float64Array, UInt8Array

if TYPE_CHECKING:
    from virchow_st.slide.cells.cell_map import CellMap

_EDGE = "#00b3a4"
_LEAST_CELLS = 3  # fewer have no correlation worth a number
_BACKGROUND_PX = 1700

# Positions and sizes, in inches.
LEFT, GAP, HEAD, BETWEEN, FOOT = 0.06, 0.07, 0.66, 0.36, 0.52
PANEL = (style.WIDTH_IN - 2 * LEFT - 2 * GAP) / 3


def read_slide_cells(path: Path, slide: SlideResult) -> CellMap:
    """Read cells onto the bins of a test slide; see `virchow_st.slide.cells.read.read_cells`.

    Raises:
        ConfigError: the run's maps do not say where their bins lie on the image.
        SlideError: the file holds no cells, or those of another slide.
    """
    from virchow_st.slide.cells.lattice import Lattice  # these load numba and shapely
    from virchow_st.slide.cells.read import read_cells
    from virchow_st.slide.geometry import Homography

    try:
        homography = Homography(np.array(slide.manifest["homography"], np.float64))
    except (ValueError, TypeError) as e:
        raise ConfigError(f"{slide.path}: homography: {e}; run `vst evaluate` again") from None
    lattice = Lattice(slide.name, homography, slide.row0, slide.col0, slide.scored_mask)
    return read_cells(path, lattice)


def read_run_cells(path: Path, slides: Sequence[SlideResult]) -> CellMap:
    """`read_slide_cells` of a run's only test slide; `ConfigError` where it has several."""
    if len(slides) > 1:
        raise ConfigError(
            f"{path}: expected one test slide for one file of cells; the run has {len(slides)}; "
            "leave out --cells"
        )
    return read_slide_cells(path, slides[0])


@dataclass(frozen=True, eq=False)
class CellValues:
    """One gene in n cells, from their scored bins alone.

    Attributes:
        predicted, observed: (n,) UMIs per 64 µm²; NaN in cells without a scored bin.
        pcc: Pearson's r of the two over cells; NaN where undefined.
        ceiling: the r that the true rates would reach, given the Poisson noise of the counts.
    """

    predicted: Float64Array
    observed: Float64Array
    pcc: float
    ceiling: float


def cell_values(labels: Array, mask: BoolArray, rate: Float32Array, counts: Array) -> CellValues:
    """Densities of a gene in cells, and how well they agree.

    The noise of a density k / n of n bins has the variance E k / n², from which the ceiling follows
    as in `virchow_st.metrics.ceiling.noise_ceiling`.

    Args:
        labels: (R, C) number of the cell of each bin, from 1; 0 = none.
        mask: (R, C) bool, scored bins.
        rate: (R, C) expected UMIs per bin.
        counts: (R, C) observed UMIs per bin.

    Example:
        >>> labels = np.array([[1, 1, 2, 0]])
        >>> counts = np.array([[1, 3, 5, 9]])
        >>> found = cell_values(labels, labels > 0, counts.astype(np.float32), counts)
        >>> found.observed.tolist()  # 2 and 5 UMIs per bin of 4 µm²
        [32.0, 80.0]
    """
    from virchow_st.metrics.ceiling import noise_ceiling  # loads numba

    n_cells = int(labels.max())
    inside = mask & (labels > 0)
    of_bin = labels[inside] - 1
    n = np.bincount(of_bin, minlength=n_cells)
    sums = [np.bincount(of_bin, of[inside], n_cells) for of in (rate, counts)]
    with np.errstate(invalid="ignore"):
        predicted, observed = (UNIT_BINS * of / n for of in sums)
    known = n > 0
    pcc = ceiling = float("nan")
    if known.sum() >= _LEAST_CELLS:
        a, b = predicted[known], observed[known]
        if a.std() > 0 and b.std() > 0:
            pcc = float(np.corrcoef(a, b)[0, 1])
        noise = np.array(UNIT_BINS**2 * np.mean(sums[1][known] / n[known] ** 2))
        ceiling = float(noise_ceiling(noise, b.var()))
    return CellValues(predicted, observed, pcc, ceiling)


@style.styled
def cells_figure(
    slide: SlideResult, cells: CellMap, rate: Float32Array, counts: Array, label: str
) -> Picture:
    """Draw cells on the whole slide above, and the 256 µm with the most UMIs below.

    Each half shows H&E, the predicted and the observed UMIs per area of the cells, in one colour
    scale, over lightened H&E. Below, lines separate the cells.

    Args:
        slide: the slide.
        cells: on its bins.
        rate: (R, C) expected UMIs per 2 µm bin of the gene.
        counts: (R, C) observed UMIs per 2 µm bin of the gene.
        label: names the gene in the title.
    """
    labels = cells.labels
    found = cell_values(labels, slide.scored_mask, rate, counts)
    limit = _limit(found)
    rows, cols = slide.scored_mask.shape
    height = PANEL * min(max(rows / cols, 0.4), 1.5)
    zoom = strongest_window(counts * (slide.scored_mask & (labels > 0)))
    zoom_height = PANEL * zoom.rows / zoom.cols
    zoom_top = HEAD + height + BETWEEN
    figure = style.new_figure(zoom_top + zoom_height + FOOT)
    n_shown = int(np.isfinite(found.predicted).sum())
    rest = f"{slide.heading}, {n_shown:,} cells"
    style.title(figure, label, rest, style.WIDTH_IN - 2 * LEFT)
    heads = (
        ("H&E, whole slide", ""),
        ("Predicted", f"PCC over cells {decimals(found.pcc)} (ceiling {decimals(found.ceiling)})"),
        ("Observed", ""),
    )
    for i, (head, detail) in enumerate(heads):
        left = LEFT + i * (PANEL + GAP)
        style.write(figure, left, HEAD - 0.34, head, fontweight="bold")
        style.write(figure, left, HEAD - 0.18, detail, fontsize=6)
    style.write(figure, LEFT, zoom_top - 0.18, f"{BIN_UM * zoom.cols} µm of strongest signal")

    for window, top, h in ((slide.whole, HEAD, height), (zoom, zoom_top, zoom_height)):
        panels = [style.place(figure, LEFT + i * (PANEL + GAP), top, PANEL, h) for i in range(3)]
        draw_stain(panels[0], slide.image, window)
        for axes, values in zip(panels[1:], (found.predicted, found.observed), strict=True):
            drawn = _draw_cells(axes, slide.image, window, labels, values, limit)
        if window is zoom:
            for axes, colour in zip(panels, (_EDGE, "white", "white"), strict=True):
                _draw_edges(axes, window, labels, colour)
        else:
            for axes in panels:
                mark(axes, zoom)
        right = window is not zoom and is_lower_left(zoom, window)
        style.scale_bar(panels[0], window.extent_um, right=right)
    _legend(figure, drawn, zoom_top + zoom_height + 0.12)
    numbers = {
        "n_cells": n_shown,
        "pcc": found.pcc,
        "pcc_ceiling": found.ceiling,
        "zoom_um": BIN_UM * zoom.cols,
        "zoom_bin": [slide.row0 + zoom.row, slide.col0 + zoom.col],
        "colour_limit": limit,
    }
    return Picture(figure, numbers)


def _limit(found: CellValues) -> float:
    """Upper end of the colours: single UMIs in small cells shall not stretch it."""
    known = np.isfinite(found.predicted)
    if not known.any():
        return 1.0
    ends = np.percentile(found.predicted[known], 99.5), np.percentile(found.observed[known], 98)
    return float(max(ends)) or 1.0


def _draw_cells(
    axes: Axes,
    image: UInt8Array,
    window: Window,
    labels: Array,
    values: Float64Array,
    limit: float,
) -> AxesImage:
    """Cells over lightened H&E; bins of one printed square are averaged over its cells."""
    part = shrink(window.cut(image, per_bin=2), _BACKGROUND_PX)
    axes.imshow(lightened(part), extent=window.extent_um)
    here = window.cut(labels)
    of_bin = np.concatenate([[np.nan], values])[here]
    known = np.isfinite(of_bin)
    factor = -(-max(window.rows, window.cols) // FINEST_CELLS)
    weight = sum_bins(known, factor)
    total = sum_bins(np.where(known, of_bin, 0), factor)
    means = np.ma.MaskedArray(total / np.maximum(weight, 1), weight == 0)
    covered = Window(window.row, window.col, factor * means.shape[0], factor * means.shape[1])
    drawn = axes.imshow(
        means, extent=covered.extent_um, vmin=0, vmax=limit, interpolation="nearest",
        cmap=style.rate_colours().with_extremes(bad=(0, 0, 0, 0)),
    )  # fmt: skip
    frame(axes, window)
    return drawn


def _draw_edges(axes: Axes, window: Window, labels: Array, colour: str) -> None:
    """Lines between bins of different cells, and between cells and what is none."""
    here = np.pad(window.cut(labels), 1)
    across = np.argwhere(here[:, 1:] != here[:, :-1])  # of a bin and the next one in its row
    down = np.argwhere(here[1:] != here[:-1])
    corner = np.array([window.col, window.row])
    lines = [
        BIN_UM * (corner + np.stack([at[:, ::-1] + first, at[:, ::-1] + last], axis=1))
        for at, first, last in ((across, (0, -1), (0, 0)), (down, (-1, 0), (0, 0)))
    ]
    axes.add_collection(LineCollection(list(np.concatenate(lines)), colors=colour, linewidths=0.35))


def _legend(figure: Figure, drawn: AxesImage, top: float) -> None:
    left = LEFT + PANEL + GAP
    colour_bar(figure, drawn, left, top, 2 * PANEL + GAP, f"{UNIT} of a cell's scored bins")
    style.write(figure, LEFT, top, "cells without a scored bin are not drawn", fontsize=6)

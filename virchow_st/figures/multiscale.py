"""One gene on one slide: H&E beside prediction and observation at 8, 4 and 2 µm.

Rates add, so a gene's density does not depend on the bin it is summed in. Every map is therefore
drawn in one unit, UMIs per 64 µm² (the area of an 8 µm bin), and all maps of one region on one
colour scale: panels compare by eye across scales, and shrinking a map on paper averages it without
dimming it. Single UMIs in 2 µm bins are 16 in this unit and stand out as dots.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from virchow_st.figures import style
from virchow_st.figures.results import Gene, GeneScore, SlideResult
from virchow_st.types import BIN_UM, Array, BoolArray, Float32Array, Float64Array, UInt8Array

SCALES = (8, 4, 2)  # µm, the columns
UNIT_BINS = 16  # 2 µm bins in 64 µm²
WINDOW_BINS = 128  # side of the enlarged square, 256 µm
WINDOW_STEP = 8  # bins; a multiple of 4, so that the square cuts no 8 µm bin
FINEST_CELLS = 1200  # along the longer side of a whole-slide map; print shows about 400
FINEST_IMAGE_PX = 1700  # of the whole-slide H&E; print shows about 840

# Where things stand, in inches.
LEFT, GAP, HEAD, BETWEEN, FOOT = 0.06, 0.05, 0.6, 0.78, 0.5
ROW_NAMES = 0.3
PANEL = (style.WIDTH_IN - 2 * LEFT - ROW_NAMES - 3 * GAP) / 5  # width of a map
STAIN = 2 * PANEL + GAP
MAPS_LEFT = LEFT + STAIN + ROW_NAMES


def sum_bins(values: Array, factor: int) -> Float64Array:
    """Sum (R, C) over squares of ``factor`` bins to (⌈R/factor⌉, ⌈C/factor⌉); the total stays.

    A last row or column of squares that the map does not fill counts what there is.
    """
    rows, cols = values.shape
    padded = np.pad(values, ((0, -rows % factor), (0, -cols % factor)))
    blocks = padded.reshape(padded.shape[0] // factor, factor, padded.shape[1] // factor, factor)
    return blocks.sum(axis=(1, 3), dtype=np.float64)


def density(values: Array, mask: BoolArray, factor: int) -> np.ma.MaskedArray:
    """UMIs per 64 µm² in squares of ``factor`` 2 µm bins; masked unless every bin is scored.

    That is the rule by which metrics score coarse bins, so grey is what no figure rests on.
    """
    known = sum_bins(mask, factor) == factor**2
    umis = sum_bins(np.where(mask, values, 0), factor)
    return np.ma.MaskedArray((umis * (UNIT_BINS / factor**2)).astype(np.float32), ~known)


@dataclass(frozen=True)
class Window:
    """A rectangle of 2 µm bins: first row and column, and how many."""

    row: int
    col: int
    rows: int
    cols: int

    @property
    def extent_um(self) -> tuple[float, float, float, float]:
        """(left, right, bottom, top) from the map's corner in µm, as `imshow` takes it."""
        left, top = BIN_UM * self.col, BIN_UM * self.row
        return left, left + BIN_UM * self.cols, top + BIN_UM * self.rows, top

    def cut(self, values: Array, per_bin: int = 1) -> Array:
        """The part of a map, or of an image with ``per_bin`` pixels a bin, inside the window."""
        rows = slice(per_bin * self.row, per_bin * (self.row + self.rows))
        return values[rows, per_bin * self.col : per_bin * (self.col + self.cols)]


def strongest_window(counts: Array, side: int = WINDOW_BINS) -> Window:
    """The square of ``side`` bins with most observed UMIs, on a 16 µm raster.

    The observation alone chooses it, so that it cannot favour the prediction.
    """
    cells = sum_bins(counts, WINDOW_STEP)
    height, width = (min(side // WINDOW_STEP, n) for n in cells.shape)
    integral = np.pad(cells.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    rows = integral[height:] - integral[:-height]
    sums = rows[:, width:] - rows[:, :-width]
    best = np.unravel_index(int(sums.argmax()), sums.shape)
    sizes = [min(side, n) for n in counts.shape]
    # The last raster position may hang over the edge: move it in, still on the 8 µm lattice.
    last = [(n - size) // 4 * 4 for n, size in zip(counts.shape, sizes, strict=True)]
    row, col = (min(int(b) * WINDOW_STEP, end) for b, end in zip(best, last, strict=True))
    return Window(row, col, *sizes)


def shared_limit(rate: Float32Array, counts: Array, mask: BoolArray) -> float:
    """Upper end of the colour scale, UMIs per 64 µm².

    The larger 99.5th percentile of the prediction at 8 µm and of the observation at 16 µm, where
    four times the UMIs let tissue rather than Poisson noise set it.
    """
    maps = density(rate, mask, 4), density(counts, mask, 8)
    tops = [float(np.percentile(m.compressed(), 99.5)) for m in maps if m.count()]
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


@style.styled
def multiscale_figure(
    slide: SlideResult, gene: Gene, label: str, scores: Mapping[int, GeneScore]
) -> Figure:
    """Draw the whole slide above and the 256 µm square of strongest signal below.

    Each half: H&E at twice the size, then a column a scale with the prediction above the
    observation, all maps on one colour scale. ``scores`` holds the gene's figures by scale (µm);
    ``label`` names the gene in the title.
    """
    rate, counts = slide.layers(gene)
    rows, cols = slide.scored_mask.shape
    whole, zoom = Window(0, 0, rows, cols), strongest_window(counts * slide.scored_mask)
    # A very long slide leaves white beside its panels rather than run off the page.
    height = PANEL * min(max(rows / cols, 0.4), 1.5)
    zoom_top = HEAD + 2 * height + GAP + BETWEEN
    figure = style.new_figure(zoom_top + 2 * PANEL + GAP + FOOT)

    style.title(figure, label, f"patient {slide.patient}")
    for column, scale in enumerate(SCALES):
        _column_head(figure, _column(column) + PANEL / 2, scale, scores)
    panels = _draw_half(figure, slide, rate, counts, whole, HEAD, height)
    for axes in panels:
        _mark(axes, zoom)
    _draw_half(figure, slide, rate, counts, zoom, zoom_top, PANEL)

    for top, letters in ((HEAD, "ab"), (zoom_top, "cd")):
        for left, letter in zip((LEFT, MAPS_LEFT - 0.16), letters, strict=True):
            style.panel_letter(figure, left, top - 0.19, letter)
    names = (HEAD, "whole slide"), (zoom_top, f"{BIN_UM * zoom.cols} µm of strongest signal")
    for top, name in names:
        style.write(figure, LEFT + 0.16, top - 0.16, f"H&E, {name}")
    _grey_key(figure, HEAD + 2 * height + GAP + 0.12)
    return figure


def _draw_half(
    figure: Figure,
    slide: SlideResult,
    rate: Float32Array,
    counts: Array,
    window: Window,
    top: float,
    height: float,
) -> list[Axes]:
    """H&E, six maps and their colour bar for one window; returns the seven image panels."""
    stain = style.place(figure, LEFT, top, STAIN, 2 * height + GAP)
    image = shrink(window.cut(slide.image, per_bin=2), FINEST_IMAGE_PX)
    stain.imshow(image, extent=window.extent_um)
    _frame(stain, window)
    style.scale_bar(stain, window.extent_um)

    mask = window.cut(slide.scored_mask)
    limit = shared_limit(window.cut(rate), window.cut(counts), mask)
    panels = [stain]
    for row, (name, values) in enumerate((("Predicted", rate), ("Observed", counts))):
        for column, scale in enumerate(SCALES):
            place = _column(column), top + row * (height + GAP)
            axes = style.place(figure, *place, PANEL, height)
            drawn = _draw_map(axes, window.cut(values), mask, window, scale, limit)
            panels.append(axes)
        panels[-len(SCALES)].set_ylabel(name, labelpad=2)
    _colour_bar(figure, drawn, top + 2 * height + GAP + 0.12)
    return panels


def _column(n: int) -> float:
    return MAPS_LEFT + n * (PANEL + GAP)


def _draw_map(
    axes: Axes, values: Array, mask: BoolArray, window: Window, scale: int, limit: float
) -> AxesImage:
    factor = max(scale // BIN_UM, math.ceil(max(window.rows, window.cols) / FINEST_CELLS))
    cells = density(values, mask, factor)
    covered = Window(window.row, window.col, factor * cells.shape[0], factor * cells.shape[1])
    # Cells finer than print are averaged as densities, before colours: sparse UMIs keep their sum.
    image = axes.imshow(
        cells, extent=covered.extent_um, cmap=style.rate_colours(), vmin=0, vmax=limit,
        interpolation="nearest" if window.cols <= WINDOW_BINS else "hanning",
        interpolation_stage="data",
    )  # fmt: skip
    axes.set_facecolor(style.UNSCORED)
    _frame(axes, window)
    return image


def _frame(axes: Axes, window: Window) -> None:
    left, right, bottom, top = window.extent_um
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    axes.set_anchor("N")
    for spine in axes.spines.values():
        spine.set_visible(False)


def _mark(axes: Axes, zoom: Window) -> None:
    """Outline on a whole-slide panel what the lower half shows."""
    left, right, bottom, top = zoom.extent_um
    box = Rectangle((left, top), right - left, bottom - top, fill=False, ec="white", lw=0.8)
    box.set_path_effects(style.halo(1.8, "black"))
    axes.add_patch(box)


def _column_head(
    figure: Figure, centre: float, scale: int, scores: Mapping[int, GeneScore]
) -> None:
    style.write(figure, centre, HEAD - 0.5, f"{scale} µm bins", ha="center", fontweight="bold")
    if (score := scores.get(scale)) is not None:
        lines = (
            f"PCC {_decimals(score.pcc)} (ceiling {_decimals(score.pcc_ceiling)})",
            f"SSIM {_decimals(score.ssim)} (shuffled {_decimals(score.ssim_shuffled)})",
        )
        style.write(figure, centre, HEAD - 0.33, "\n".join(lines), ha="center", fontsize=6)


def _decimals(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _colour_bar(figure: Figure, image: AxesImage, top: float) -> None:
    axes = style.place(figure, MAPS_LEFT, top, 3 * PANEL + 2 * GAP, 0.08)
    bar = figure.colorbar(image, cax=axes, orientation="horizontal", extend="max", extendfrac=0.02)
    bar.outline.set_visible(False)
    bar.set_label("UMIs per 64 µm² (an 8 µm bin); one UMI in a 2 µm bin is 16", labelpad=2)


def _grey_key(figure: Figure, top: float) -> None:
    """Say what grey means."""
    axes = style.place(figure, LEFT, top, 0.16, 0.08)
    axes.set(facecolor=style.UNSCORED, xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    style.write(figure, LEFT + 0.22, top + 0.04, "no tissue, or not scored", va="center_baseline")

"""The panels of figures with maps: H&E, map, colour bar, key, captions."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from virchow_st.output.figures import style
from virchow_st.output.figures.rasters import WINDOW_BINS, Window, density, shrink
from virchow_st.types import BIN_UM, Array, BoolArray, UInt8Array

UNIT = "UMIs per 64 µm²"
FINEST_CELLS = 1200
"""Squares along the longer side of a map; print shows about 700 at most."""
_FINEST_IMAGE_PX = 1700  # along the longer side of an H&E; print shows about 840


def draw_stain(axes: Axes, image: UInt8Array, window: Window) -> None:
    """Draw the part of an H&E image (2R, 2C, 3) inside the window; axes are in µm."""
    part = shrink(window.cut(image, per_bin=2), _FINEST_IMAGE_PX)
    axes.imshow(part, extent=window.extent_um)
    frame(axes, window)


def draw_map(
    axes: Axes, values: Array, mask: BoolArray, window: Window, scale: int, limit: float
) -> AxesImage:
    """Draw a map in UMIs per 64 µm², grey where it is not scored; axes are in µm.

    Args:
        axes: the axes to draw on.
        values: (R, C) rates or counts of the window's 2 µm bins.
        mask: (R, C) bool, True for scored bins.
        window: position of the bins on the slide.
        scale: size of the drawn bins, µm.
        limit: upper end of the colour scale.
    """
    factor = max(scale // BIN_UM, math.ceil(max(window.rows, window.cols) / FINEST_CELLS))
    cells = density(values, mask, factor)
    covered = Window(window.row, window.col, factor * cells.shape[0], factor * cells.shape[1])
    # Cells finer than print are averaged as densities before they are coloured: this keeps the
    # sum of sparse UMIs.
    image = axes.imshow(
        cells, extent=covered.extent_um, cmap=style.rate_colours(), vmin=0, vmax=limit,
        interpolation="nearest" if window.cols <= WINDOW_BINS else "hanning",
        interpolation_stage="data",
    )  # fmt: skip
    axes.set_facecolor(style.UNSCORED)
    frame(axes, window)
    return image


def frame(axes: Axes, window: Window) -> None:
    """Limit axes to a window, rows downwards, without ticks or border."""
    left, right, bottom, top = window.extent_um
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    axes.set_anchor("N")
    for spine in axes.spines.values():
        spine.set_visible(False)


def mark(axes: Axes, window: Window) -> None:
    """Outline a window on a panel of a larger one."""
    left, right, bottom, top = window.extent_um
    box = Rectangle(
        (left, top), right - left, bottom - top, fill=False, ec="white", lw=0.8, clip_on=False
    )
    box.set_path_effects(style.halo(1.8, "black"))
    axes.add_patch(box)


def is_lower_left(window: Window, whole: Window) -> bool:
    """Whether a window covers the usual position of the scale bar on a panel of a larger one."""
    low = window.row + window.rows > whole.row + 0.8 * whole.rows
    return low and window.col < whole.col + 0.4 * whole.cols


def colour_bar(
    figure: Figure,
    image: AxesImage,
    left: float,
    top: float,
    width: float,
    label: str,
    extend: str = "max",
) -> None:
    """A horizontal colour bar at a position in inches; ``extend`` names the open ends."""
    axes = style.place(figure, left, top, width, 0.08)
    bar = figure.colorbar(
        image, cax=axes, orientation="horizontal", extend=extend, extendfrac=0.06 / width
    )
    bar.outline.set_visible(False)
    bar.set_label(label, labelpad=2)


def upright_bar(figure: Figure, image: AxesImage, left: float, top: float, height: float) -> None:
    """A vertical colour bar at a position in inches, without a label."""
    axes = style.place(figure, left, top, 0.07, height)
    bar = figure.colorbar(image, cax=axes, extend="max", extendfrac=0.05)
    bar.outline.set_visible(False)
    bar.ax.tick_params(pad=1.5)
    bar.ax.locator_params(nbins=5)


def grey_key(figure: Figure, left: float, top: float) -> None:
    """Draw the key that explains grey."""
    axes = style.place(figure, left, top, 0.16, 0.08)
    axes.set(facecolor=style.UNSCORED, xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    style.write(figure, left + 0.22, top + 0.04, "no tissue, or not scored", va="center_baseline")


def decimals(value: float, digits: int = 2) -> str:
    """A score as text: a dash if it is undefined, with a true minus sign.

    >>> decimals(0.3456), decimals(-0.5, 1), decimals(float("nan"))
    ('0.35', '−0.5', '–')
    """
    if math.isnan(value):
        return "–"
    # Adding 0.0 after rounding turns a negative zero into zero.
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")

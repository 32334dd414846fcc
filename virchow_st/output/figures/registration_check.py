"""Registration of image and counts: correlation over shifts, and both maps before and after.

Haematoxylin is drawn in magenta and UMIs in green on white. Where both overlap the picture is dark;
where they are shifted, both colours are visible side by side.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from virchow_st.output.figures import style
from virchow_st.types import BIN_UM, Array, BoolArray, Float64Array

HEIGHT = 2.75  # inches
PANEL = 2.0  # side of every panel
TOP = 0.45
LEFTS = (0.5, 3.05, 5.12)  # of the panels
WINDOW_BINS = 64  # side of the overlays, 128 µm: nuclei are seen
MAGENTA, GREEN = (0.77, 0.11, 0.49), (0.10, 0.55, 0.25)
_SMOOTH_BINS = 1.0  # sigma by which UMIs are smoothed: 2 µm


def draw_registration(
    stem: Path,
    correlation: Float64Array,
    shift_um: tuple[float, float],
    haematoxylin: Array,
    umi: Array,
    tissue_mask: BoolArray,
) -> Path:
    """Draw `registration_figure` into ``stem.png`` and return its path."""
    figure = registration_figure(correlation, shift_um, haematoxylin, umi, tissue_mask)
    return style.save(figure, stem, ("png",))[0]


@style.styled
def registration_figure(
    correlation: Float64Array,
    shift_um: tuple[float, float],
    haematoxylin: Array,
    umi: Array,
    tissue_mask: BoolArray,
) -> Figure:
    """Draw (a) the correlation over shifts, (b) both maps as registered, (c) the image moved back.

    Args:
        correlation: (2n+1, 2n+1) over shifts of −n to n bins, rows down.
        shift_um: (row, col) displacement of the image relative to the counts, µm.
        haematoxylin: (128, 128) of one patch.
        umi: (128, 128) UMIs of the same patch.
        tissue_mask: (128, 128) bool, where ``umi`` is known.
    """
    figure = style.new_figure(HEIGHT)
    _draw_correlation(figure, correlation, shift_um)
    smooth = _smoothed(np.sqrt(umi), tissue_mask)
    row, col = (round(um / BIN_UM) for um in shift_um)
    top, left = _fullest_window(umi, max(abs(row), abs(col)))
    moved = f"image moved down {_um(-BIN_UM * row)}, right {_um(-BIN_UM * col)} µm"
    moves = (("b", "as they lie", (0, 0)), ("c", moved, (row, col)))
    for (letter, text, move), at in zip(moves, LEFTS[1:], strict=True):
        axes = style.place(figure, at, TOP, PANEL, PANEL)
        stain = _cut(haematoxylin, top + move[0], left + move[1])
        axes.imshow(_two_inks(stain, _cut(smooth, top, left)), extent=_EXTENT)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(True)
        style.scale_bar(axes, _EXTENT)
        style.panel_letter(figure, at, TOP - 0.22, letter)
        style.write(figure, at + 0.16, TOP - 0.19, text)
    foot = TOP + PANEL + 0.1
    style.write(figure, LEFTS[1], foot, "haematoxylin", color=MAGENTA, fontweight="bold")
    style.write(figure, LEFTS[1] + 0.85, foot, "UMIs of all genes", color=GREEN, fontweight="bold")
    style.write(figure, LEFTS[1] + 1.95, foot, "both: dark", color=style.MUTED)
    return figure


_SIDE_UM = BIN_UM * WINDOW_BINS
_EXTENT = (0.0, _SIDE_UM, _SIDE_UM, 0.0)


def _draw_correlation(
    figure: Figure, correlation: Float64Array, shift_um: tuple[float, float]
) -> None:
    axes = style.place(figure, LEFTS[0], TOP, PANEL, PANEL)
    reach = BIN_UM * (correlation.shape[0] // 2 + 0.5)
    limit = float(np.abs(correlation).max()) or 1.0
    image = axes.imshow(
        correlation, extent=(-reach, reach, reach, -reach), cmap=matplotlib.colormaps["RdBu_r"],
        vmin=-limit, vmax=limit, interpolation="nearest",
    )  # fmt: skip
    row, col = shift_um
    _mark(axes, 0.0, 0.0, "+", "no shift")
    _mark(axes, col, row, "o", f"best: {_um(row)}, {_um(col)} µm")
    axes.set_xlabel("shift along columns, µm", labelpad=2)
    axes.set_ylabel("shift along rows, µm", labelpad=1)
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 0.99), ncols=2, handletextpad=0.1, columnspacing=1
    )
    style.panel_letter(figure, 0.06, TOP - 0.22, "a")
    bar_axes = style.place(figure, LEFTS[0] + PANEL + 0.06, TOP, 0.07, PANEL)
    bar = figure.colorbar(image, cax=bar_axes)
    bar.outline.set_visible(False)
    bar_axes.set_title("r", pad=3)


def _mark(axes: Axes, x: float, y: float, marker: str, label: str) -> None:
    axes.plot(
        x, y, marker, ms=7, mfc="none", mec="black", mew=0.9, ls="none", label=label,
        path_effects=style.halo(2.2),
    )  # fmt: skip


def _two_inks(magenta: Array, green: Array) -> Float64Array:
    """(h, w, 3) RGB overlay of two maps, each scaled from its 5th to its 99th percentile."""
    paper = np.ones((*magenta.shape, 3))
    for values, ink in ((magenta, MAGENTA), (green, GREEN)):
        low, high = np.nanpercentile(values, (5, 99))
        depth = np.clip(np.nan_to_num((values - low) / max(high - low, 1e-9)), 0, 1)
        paper *= 1 - depth[..., None] * (1 - np.array(ink))
    return paper


def _smoothed(values: Float64Array, mask: BoolArray) -> Float64Array:
    """Mean of the values within the mask under a Gaussian of 2 µm; 0 outside of the mask."""
    reach = np.arange(-3, 4)
    weights = np.exp(-0.5 * (reach / _SMOOTH_BINS) ** 2)

    def blur(a: Array) -> Array:
        for axis in (0, 1):
            a = np.apply_along_axis(np.convolve, axis, a, weights, "same")
        return a

    inside = mask.astype(np.float64)
    return inside * blur(values * inside) / np.maximum(blur(inside), 1e-12)


def _fullest_window(umi: Array, margin: int) -> tuple[int, int]:
    """First row and column of the window with the most UMIs that stays inside when moved."""
    starts = range(margin, umi.shape[0] - WINDOW_BINS - margin + 1, 4)
    places = [(row, col) for row in starts for col in starts]
    return max(places, key=lambda place: float(_cut(umi, *place).sum()))


def _cut(values: Array, row: int, col: int) -> Array:
    return values[row : row + WINDOW_BINS, col : col + WINDOW_BINS]


def _um(value: float) -> str:
    return f"{value:+.1f}".rstrip("0").rstrip(".").replace("-", "−") if round(value, 1) else "0"

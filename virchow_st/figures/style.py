"""The look all figures share: sizes, type, colours, scale bar, and how a figure is saved.

Figures are `matplotlib.figure.Figure` objects made without pyplot, so drawing leaves no global
state behind and needs no display. Positions are in inches from the figure's top left corner.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from virchow_st.types import SCALES_UM

WIDTH_IN = 7.2  # two columns of a journal page, 183 mm
DPI = 300
UNSCORED = "#bdbdbd"
"""Grey of bins without tissue or outside the evaluated patches."""
MUTED = "#555555"

# Dark to light in the order of the scales: the order reads without colour vision too.
SCALE_COLOURS = dict(zip(SCALES_UM, ("#440154", "#31688e", "#27a07c", "#d1a800"), strict=True))

RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Arial", "Helvetica", "Liberation Sans", "DejaVu Sans"],
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 2.5,
    "text.parse_math": False,  # a symbol is text, whatever signs it holds
    "pdf.fonttype": 42,  # TrueType, so that text stays text in a vector editor
    "savefig.facecolor": "white",
}

styled = matplotlib.rc_context(RC)
"""Decorator that gives a function the settings above and restores the caller's afterwards."""


def rate_colours() -> Colormap:
    """Perceptually uniform colours for rates and counts, `UNSCORED` where there is no value."""
    return matplotlib.colormaps["magma"].with_extremes(bad=UNSCORED)


def new_figure(height_in: float) -> Figure:
    """An empty figure, `WIDTH_IN` wide."""
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a position in inches from the figure's top left corner."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))


def write(figure: Figure, left: float, top: float, text: str, **look: Any) -> Text:
    """Text at a position in inches from the figure's top left corner; returns the artist."""
    w, h = figure.get_size_inches()
    return figure.text(left / w, 1 - top / h, text, **{"va": "top", **look})


def title(figure: Figure, subject: str, rest: str) -> None:
    """The figure's title: ``subject`` in italics, as gene symbols are set, then ``rest``."""
    first = write(figure, 0.06, 0.06, subject, fontsize=11, fontstyle="italic")
    second = Annotation(
        rest, (1, 0), xycoords=first, xytext=(8, 0), textcoords="offset points",
        va="bottom", fontsize=8, color=MUTED,
    )  # fmt: skip
    figure.add_artist(second)


def panel_letter(figure: Figure, left: float, top: float, letter: str) -> None:
    """The bold letter by which a caption names a panel."""
    write(figure, left, top, letter, fontsize=9, fontweight="bold")


def halo(width: float, colour: str = "white") -> list[patheffects.AbstractPathEffect]:
    """An outline that keeps a line or text readable on any image."""
    return [patheffects.withStroke(linewidth=width, foreground=colour)]


def scale_bar(axes: Axes, extent_um: Sequence[float]) -> float:
    """Draw a scale bar in the lower left of an image whose data units are µm; return its length.

    ``extent_um`` is (left, right, bottom, top) as `imshow` takes it, rows downwards.
    """
    left, right, bottom, top = extent_um
    width, height = right - left, bottom - top
    fitting = [n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if n <= 0.3 * width]
    length = float(max(fitting, default=0.3 * width))
    x, y = left + 0.04 * width, bottom - 0.04 * height
    axes.plot(
        [x, x + length], [y, y], color="black", linewidth=2, solid_capstyle="butt",
        path_effects=halo(3.5),
    )  # fmt: skip
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    axes.annotate(
        label, (x, y), (0, 3), textcoords="offset points", va="bottom",
        path_effects=halo(2),
    )  # fmt: skip
    return length


@styled
def save(figure: Figure, stem: Path, kinds: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Write ``stem.KIND`` (PNG at 300 dpi), each whole or not at all; return the paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in kinds:
        # Not with_suffix: a gene's symbol may hold a dot.
        path = stem.parent / f"{stem.name}.{kind}"
        unfinished = path.parent / f".{path.name}.tmp"
        # Without its date, a PDF of the same results is the same file.
        undated = {"CreationDate": None} if kind == "pdf" else None
        try:
            figure.savefig(unfinished, format=kind, dpi=DPI, metadata=undated)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        written.append(path)
    return written

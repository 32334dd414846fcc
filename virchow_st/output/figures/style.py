"""The common style of all figures: sizes, fonts, colours, scale bar, and how they are saved.

Figures are `matplotlib.figure.Figure` objects made without pyplot, so drawing leaves no global
state behind and needs no display. Positions are in inches from the figure's top left corner.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from virchow_st.names import shortened
from virchow_st.runtime.atomic import written_whole
from virchow_st.types import SCALES_UM

WIDTH_IN = 7.2  # two columns of a journal page, 183 mm
DPI = 300
UNSCORED = "#bdbdbd"
"""Grey of bins without tissue or outside the evaluated patches."""
MUTED = "#555555"

# From dark to light in the order of the scales, so that the order is visible without colour.
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
    "text.parse_math": False,  # a gene symbol is text, whatever characters it contains
    "hatch.linewidth": 0.6,
    "hatch.color": "#d55e00",
    "pdf.fonttype": 42,  # TrueType, so that text can be edited in a vector editor
    "savefig.facecolor": "white",
}

styled = matplotlib.rc_context(RC)
"""Decorator that applies the settings above to a function and then restores the caller's."""


def depth_colours() -> Colormap:
    """Perceptually uniform colours for sums over all genes, unlike those of a single gene."""
    return matplotlib.colormaps["cividis"].with_extremes(bad=UNSCORED)


@dataclass(frozen=True)
class Picture:
    """A figure, and every number that is printed in it, unrounded and by name.

    The numbers are JSON values; NaN stands for an undefined one.
    """

    figure: Figure
    numbers: dict[str, Any]


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
    """Draw text at a position in inches from the figure's top left corner; return the artist."""
    w, h = figure.get_size_inches()
    return figure.text(left / w, 1 - top / h, text, **{"va": "top", **look})


def title(figure: Figure, subject: str, rest: str, width: float, italic: bool = True) -> None:
    """The title of the figure: ``subject`` in italics, as gene symbols are set, then ``rest``.

    Both are shrunk, then shortened in the middle, until they fit into ``width`` inches.
    """
    slant = "italic" if italic else "normal"
    line: dict[str, Any] = {"va": "baseline"}
    first = write(figure, 0.06, 0.2, subject, fontsize=11, fontstyle=slant, **line)
    fit(first, width if not rest else 0.65 * width)
    left = 0.06 + size_in(first)[0] + 8 / 72
    fit(write(figure, left, 0.2, rest, fontsize=8, color=MUTED, **line), width + 0.06 - left)


LEAST_POINTS = 5.0
"""Smallest font size, even if a text does not fit."""
_MOST_LETTERS = 300  # what fits anywhere; each is measured anew while a text is shortened


def size_in(text: Text) -> tuple[float, float]:
    """Width and height of a drawn text, in inches."""
    figure = text.get_figure(root=True)
    assert figure is not None
    with _boxes_for_unknown_letters():
        box = text.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    return box.width / figure.dpi, box.height / figure.dpi


@contextmanager
def _boxes_for_unknown_letters() -> Iterator[None]:
    """Names in letters that no font of the machine has are drawn as boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r"Glyph \d+ .* missing from", category=UserWarning
        )
        yield


def fit(text: Text, room: float, upright: bool = False) -> Text:
    """Shrink a text to ``room`` inches, down to `LEAST_POINTS`; then shorten it in the middle.

    With ``upright`` the height is fitted, for text rotated by 90°. Returns the text.
    """
    side = 1 if upright else 0
    text.set_text(shortened(text.get_text(), _MOST_LETTERS))
    points = float(text.get_fontsize())
    while size_in(text)[side] > room and points > LEAST_POINTS:
        points = max(LEAST_POINTS, points - 0.25)
        text.set_fontsize(points)
    whole = text.get_text()
    keep = len(whole)
    while size_in(text)[side] > room and keep > 2:
        keep -= 1
        text.set_text(f"{whole[: (keep + 1) // 2]}…{whole[len(whole) - keep // 2 :]}")
    return text


def panel_letter(figure: Figure, left: float, top: float, letter: str) -> None:
    """Draw the bold letter by which a caption refers to a panel."""
    write(figure, left, top, letter, fontsize=9, fontweight="bold")


def legend(
    figure: Figure, handles: Sequence[Any], names: Sequence[str], left: float, top: float
) -> None:
    """A legend in one line at a position in inches."""
    w, h = figure.get_size_inches()
    figure.legend(
        handles, names, loc="upper left", bbox_to_anchor=(left / w, 1 - top / h),
        ncols=len(names), borderaxespad=0, borderpad=0, columnspacing=1.2, handlelength=1.8,
        handletextpad=0.5,
    )  # fmt: skip


def log_ticks(axis: Axis, low: float, high: float, text: Callable[[float], str]) -> None:
    """Two to five labelled ticks on a logarithmic axis: decades, or values between them.

    Args:
        axis: the axis, whose limits are set.
        low, high: range in which ticks may lie.
        text: formats a value.
    """
    decades = [10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [d * s for d in decades for s in steps if low <= d * s <= high]
        if len(ticks) >= 3:
            break
    axis.set_major_locator(FixedLocator(ticks[:: math.ceil(len(ticks) / 5)]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(float(f"{value:.3g}"))))


def plain(value: float) -> str:
    """A tick's value as text: 0.001, 20, or a power of ten such as 10⁻⁵ instead of many zeros.

    >>> plain(0.001), plain(20), plain(1e-5), plain(2e-5)
    ('0.001', '20', '10⁻⁵', '2·10⁻⁵')
    """
    text = f"{value:g}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if mantissa == "1" else f"{mantissa}·10{raised}"


def halo(width: float, colour: str = "white") -> list[patheffects.AbstractPathEffect]:
    """An outline that keeps a line or text readable on any image."""
    return [patheffects.withStroke(linewidth=width, foreground=colour)]


def scale_bar(
    axes: Axes, extent_um: Sequence[float], right: bool = False, fontsize: float = 7
) -> float:
    """Draw a scale bar into an image whose data units are µm; return its length.

    Args:
        axes: the axes of the image.
        extent_um: (left, right, bottom, top) as `imshow` takes it, rows downwards.
        right: in the lower right corner rather than the lower left.
        fontsize: font size of the label.
    """
    x0, x1, bottom, top = extent_um
    width, height = x1 - x0, bottom - top
    fitting = [n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if n <= 0.3 * width]
    length = float(max(fitting, default=0.3 * width))
    x, y = x0 + 0.04 * width, bottom - 0.04 * height
    if right:
        x = x1 - 0.04 * width - length
    axes.plot(
        [x, x + length], [y, y], color="black", linewidth=2, solid_capstyle="butt",
        path_effects=halo(3.5),
    )  # fmt: skip
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    axes.annotate(
        label, (x + length if right else x, y), (0, 3), textcoords="offset points", va="bottom",
        ha="right" if right else "left", path_effects=halo(2), fontsize=fontsize,
    )  # fmt: skip
    return length


@styled
def save(figure: Figure, stem: Path, kinds: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Write ``stem.KIND`` (PNG at 300 dpi), each completely or not at all; return the paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in kinds:
        # Not with_suffix: a gene symbol may contain a dot.
        path = stem.parent / f"{stem.name}.{kind}"
        # Without a date, the same results give the same PDF.
        undated = {"CreationDate": None} if kind == "pdf" else None
        with written_whole(path) as aside, _boxes_for_unknown_letters():
            figure.savefig(aside, format=kind, dpi=DPI, metadata=undated)
        written.append(path)
    return written

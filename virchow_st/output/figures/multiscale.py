"""One gene on one slide: H&E beside prediction and observation at 8, 4 and 2 µm."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from virchow_st.output.figures import style
from virchow_st.output.figures.panels import (
    UNIT,
    colour_bar,
    decimals,
    draw_map,
    draw_stain,
    grey_key,
    is_lower_left,
    mark,
)
from virchow_st.output.figures.rasters import Window, shared_limit, strongest_window
from virchow_st.output.figures.style import Picture
from virchow_st.run.maps import SlideResult
from virchow_st.run.results import GeneScore
from virchow_st.types import BIN_UM, Array, Float32Array

SCALES = (8, 4, 2)  # µm, the columns

# Positions and sizes, in inches.
LEFT, GAP, HEAD, BETWEEN, FOOT = 0.06, 0.05, 0.6, 0.78, 0.5
ROW_NAMES = 0.3
PANEL = (style.WIDTH_IN - 2 * LEFT - ROW_NAMES - 3 * GAP) / 5  # width of a map
STAIN = 2 * PANEL + GAP
MAPS_LEFT = LEFT + STAIN + ROW_NAMES


@style.styled
def multiscale_figure(
    slide: SlideResult,
    rate: Float32Array,
    counts: Array,
    label: str,
    scores: Mapping[int, GeneScore],
) -> Picture:
    """Draw the whole slide above and the 256 µm square with the most UMIs below.

    Each half shows H&E at twice the size, then one column per scale with the prediction above the
    observation. All maps of a half share one colour scale.

    Args:
        slide: the slide.
        rate: (R, C) expected UMIs per 2 µm bin of the gene.
        counts: (R, C) observed UMIs per 2 µm bin of the gene.
        label: names the gene in the title.
        scores: the gene's scores by scale (µm).
    """
    rows, cols = slide.scored_mask.shape
    zoom = strongest_window(counts * slide.scored_mask)
    # A very long slide leaves white space beside its panels, so that it fits on the page.
    height = PANEL * min(max(rows / cols, 0.4), 1.5)
    zoom_top = HEAD + 2 * height + GAP + BETWEEN
    figure = style.new_figure(zoom_top + 2 * PANEL + GAP + FOOT)

    style.title(figure, label, slide.heading, MAPS_LEFT - 2 * LEFT)
    for column, scale in enumerate(SCALES):
        _column_head(figure, _column(column) + PANEL / 2, scale, scores)
    panels, limit = _draw_half(figure, slide, rate, counts, slide.whole, HEAD, height)
    zoomed, zoom_limit = _draw_half(figure, slide, rate, counts, zoom, zoom_top, PANEL)
    for axes in panels:
        mark(axes, zoom)
    style.scale_bar(panels[0], slide.whole.extent_um, right=is_lower_left(zoom, slide.whole))
    style.scale_bar(zoomed[0], zoom.extent_um)

    for top, letters in ((HEAD, "ab"), (zoom_top, "cd")):
        for left, letter in zip((LEFT, MAPS_LEFT - 0.16), letters, strict=True):
            style.panel_letter(figure, left, top - 0.19, letter)
    names = (HEAD, "whole slide"), (zoom_top, f"{BIN_UM * zoom.cols} µm of strongest signal")
    for top, name in names:
        style.write(figure, LEFT + 0.16, top - 0.16, f"H&E, {name}")
    grey_key(figure, LEFT, HEAD + 2 * height + GAP + 0.12)
    numbers = {
        "scales": {
            str(s): {name: getattr(scores[s], name) for name in _PRINTED}
            for s in SCALES
            if s in scores
        },
        "zoom_um": BIN_UM * zoom.cols,
        "zoom_bin": [slide.row0 + zoom.row, slide.col0 + zoom.col],
        "colour_limits": {"whole": limit, "zoom": zoom_limit},
    }
    return Picture(figure, numbers)


_PRINTED = ("pcc", "pcc_ceiling", "ssim", "ssim_shuffled")


def _draw_half(
    figure: Figure,
    slide: SlideResult,
    rate: Float32Array,
    counts: Array,
    window: Window,
    top: float,
    height: float,
) -> tuple[list[Axes], float]:
    """Draw H&E, six maps and their colour bar for one window; return the panels and the limit."""
    stain = style.place(figure, LEFT, top, STAIN, 2 * height + GAP)
    draw_stain(stain, slide.image, window)

    mask = window.cut(slide.scored_mask)
    limit = shared_limit([(window.cut(rate), mask)], [(window.cut(counts), mask)])
    panels = [stain]
    for row, (name, values) in enumerate((("Predicted", rate), ("Observed", counts))):
        for column, scale in enumerate(SCALES):
            place = _column(column), top + row * (height + GAP)
            axes = style.place(figure, *place, PANEL, height)
            drawn = draw_map(axes, window.cut(values), mask, window, scale, limit)
            panels.append(axes)
        centre = MAPS_LEFT - 0.09, top + row * (height + GAP) + height / 2
        style.write(figure, *centre, name, rotation=90, ha="center", va="center")
    label = f"{UNIT} (an 8 µm bin); one UMI in a 2 µm bin is 16"
    bar_top = top + 2 * height + GAP + 0.12
    colour_bar(figure, drawn, MAPS_LEFT, bar_top, 3 * PANEL + 2 * GAP, label)
    return panels, limit


def _column(n: int) -> float:
    return MAPS_LEFT + n * (PANEL + GAP)


def _column_head(
    figure: Figure, centre: float, scale: int, scores: Mapping[int, GeneScore]
) -> None:
    style.write(figure, centre, HEAD - 0.5, f"{scale} µm bins", ha="center", fontweight="bold")
    if (score := scores.get(scale)) is not None:
        lines = (
            f"PCC {decimals(score.pcc)} (ceiling {decimals(score.pcc_ceiling)})",
            f"SSIM {decimals(score.ssim)} (shuffled {decimals(score.ssim_shuffled)})",
        )
        style.write(figure, centre, HEAD - 0.33, "\n".join(lines), ha="center", fontsize=6)

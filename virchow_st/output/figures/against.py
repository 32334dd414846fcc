"""Two runs on the same test patches: by gene, on average, by calibration, and on the slide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from virchow_st.output.figures import style
from virchow_st.output.figures.calibration import curve_limits, draw_curve
from virchow_st.output.figures.labels import label_points
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
from virchow_st.output.figures.rasters import shared_limit, strongest_window
from virchow_st.output.figures.reliability import Curve
from virchow_st.output.figures.style import Picture
from virchow_st.run.maps import SlideResult
from virchow_st.run.results import GeneScore
from virchow_st.types import BIN_UM, SCALES_UM, Array, Float32Array

COLOURS = ("#0072b2", "#d55e00")
"""Colours of the first and of the second run."""
_SCATTERS = (("pcc", 8, "PCC at 8 µm"), ("pcc", 2, "PCC at 2 µm"), ("d2_poisson", 8, "D² at 8 µm"))
_LEAST_REACH = 0.002  # smallest range of the difference axes; below, ticks would all be 0.00
_DIFFERENCES = (("pcc", "PCC"), ("d2_poisson", "D²"))

# Positions and sizes, in inches.
LEFT, GAP = 0.06, 0.05
SCATTER_TOP, SCATTER, SCATTER_PITCH = 0.98, 1.7, 2.42
ROW_TOP, ROW_HEIGHT = 3.42, 1.2
MAPS_TOP = 5.72
PANEL = (style.WIDTH_IN - 2 * LEFT - 3 * GAP) / 4


@dataclass(frozen=True)
class Side:
    """One of the two runs.

    Attributes:
        name: name of the run in the figure.
        detail: its decoder and loss.
        genes: scores of every gene by scale, in the panel's order.
        curves: calibration by scale, 2 and 8 µm.
        rate: (R, C) expected UMIs per 2 µm bin of the shown gene on the shown slide.
    """

    name: str
    detail: str
    genes: Sequence[Mapping[int, GeneScore]]
    curves: Mapping[int, Curve]
    rate: Float32Array


@style.styled
def against_figure(
    sides: tuple[Side, Side],
    labels: Sequence[str],
    differences: Mapping[str, Any],
    slide: SlideResult,
    counts: Array,
    shown: int,
) -> Picture:
    """Draw two runs against each other.

    (a–c) PCC at 8 and 2 µm and deviance explained of each gene, (d, e) paired differences at every
    scale, (f, g) calibration at 2 and 8 µm, (h, i) one gene on the slide.

    Args:
        sides: the two runs.
        labels: names of the genes.
        differences: first minus second run by scale, from `virchow_st.run.compare`.
        slide: the slide to show, from either run.
        counts: (R, C) UMIs per 2 µm bin of the gene to show.
        shown: index of that gene in the panel.
    """
    rows, cols = slide.scored_mask.shape
    height = PANEL * min(max(rows / cols, 0.4), 1.3)
    zoom_top = MAPS_TOP + height + 0.22
    figure = style.new_figure(zoom_top + PANEL + 0.5)
    _head(figure, sides)
    numbers: dict[str, Any] = {
        "runs": {side.name: side.detail for side in sides},
        "genes": [
            {
                "gene": label,
                **{
                    f"{name}_{scale}": [getattr(side.genes[i][scale], name) for side in sides]
                    for name, scale, _ in _SCATTERS
                },
            }
            for i, label in enumerate(labels)
        ],
        "better": {},
        "differences": dict(differences),
        "calibration": [
            {str(s): curve.numbers() for s, curve in side.curves.items()} for side in sides
        ],
    }
    for i, (name, scale, title) in enumerate(_SCATTERS):
        left = 0.5 + i * SCATTER_PITCH
        axes = style.place(figure, left, SCATTER_TOP, SCATTER, SCATTER)
        style.panel_letter(figure, left - 0.44, SCATTER_TOP - 0.22, "abc"[i])
        axes.set_title(title, fontweight="bold", pad=3)
        numbers["better"][f"{name}_{scale}"] = _scatter(axes, sides, labels, name, scale, shown)
    _draw_differences(figure, sides, differences)
    _draw_calibration(figure, sides)
    numbers["maps"] = _draw_maps(figure, sides, labels[shown], slide, counts, shown, height)
    return Picture(figure, numbers)


def _head(figure: Figure, sides: tuple[Side, Side]) -> None:
    style.write(figure, LEFT, 0.06, "Two runs on the same test patches", fontsize=11)
    for i, side in enumerate(sides):
        y = 0.32 + 0.15 * i
        name = style.write(
            figure, LEFT, y, f"{'AB'[i]}  {side.name}", color=COLOURS[i], fontweight="bold",
            fontsize=8,
        )  # fmt: skip
        style.fit(name, 4.0)
        style.write(figure, LEFT + style.size_in(name)[0] + 0.1, y + 0.012, side.detail,
                    color=style.MUTED)  # fmt: skip


def _scatter(
    axes: Axes, sides: tuple[Side, Side], labels: Sequence[str], name: str, scale: int, shown: int
) -> dict[str, int]:
    """Draw genes by a score of B (x) and of A (y); count those for which A and B are better."""
    y, x = (np.array([getattr(gene[scale], name) for gene in side.genes]) for side in sides)
    scored = np.array([not np.isnan(gene[scale].pcc) for gene in sides[0].genes])
    drawn = scored & ~np.isnan(x) & ~np.isnan(y)
    values = np.concatenate([x[drawn], y[drawn]])
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    margin = 0.12 * max(high - low, 0.05)  # room for the lines of text
    limits = low - margin, high + margin
    axes.plot(limits, limits, color=style.MUTED, linewidth=0.6, linestyle="--", zorder=1)
    axes.plot(x[drawn], y[drawn], "o", color="#444444", ms=2.8, mew=0, zorder=2)
    axes.set(xlim=limits, ylim=limits)
    axes.locator_params(nbins=5)
    axes.set_xlabel("B", color=COLOURS[1], fontweight="bold", labelpad=1)
    axes.set_ylabel(
        "A", color=COLOURS[0], fontweight="bold", labelpad=2, rotation=0, ha="right", va="center"
    )
    better = {"a": int((y > x)[drawn].sum()), "b": int((x > y)[drawn].sum())}
    n = int(drawn.sum())
    look: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 6.5}
    axes.text(0.03, 0.97, f"A higher: {better['a']} of {n}", va="top", color=COLOURS[0], **look)
    axes.text(0.97, 0.03, f"B higher: {better['b']} of {n}", ha="right", color=COLOURS[1], **look)
    far = np.argsort(-np.abs(np.where(drawn, x - y, 0.0)))[:8].tolist()
    diagonal = np.repeat(np.linspace(*limits, 80)[:, None], 2, axis=1)
    order = list(dict.fromkeys([shown, *far]))
    label_points(axes, np.where(drawn, x, np.nan), y, labels, order, diagonal)
    return better


def _draw_differences(
    figure: Figure, sides: tuple[Side, Side], differences: Mapping[str, Any]
) -> None:
    for i, (name, title) in enumerate(_DIFFERENCES):
        left = 0.5 + i * 1.78
        axes = style.place(figure, left, ROW_TOP, 1.22, ROW_HEIGHT)
        style.panel_letter(figure, left - 0.44, ROW_TOP - 0.22, "de"[i])
        axes.set_title(f"{title}, A − B", fontweight="bold", pad=3)
        axes.axvline(0, color=style.MUTED, linewidth=0.6, linestyle="--", zorder=1)
        reach = 0.0
        for row, scale in enumerate(SCALES_UM):
            at = differences[str(scale)][name]
            value = at["difference"]
            if value is None:
                continue
            low, high = at["ci95"] or (value, value)
            reach = max(reach, abs(low), abs(high), abs(value))
            clear = at["ci95"] is not None and not low <= 0 <= high
            colour = COLOURS[0 if value > 0 else 1] if clear else style.MUTED
            axes.plot([low, high], [row, row], color=colour, linewidth=1.2)
            axes.plot(value, row, "o", ms=4, mew=0.9, mec=colour, mfc=colour if clear else "white")
        reach = max(1.15 * reach, _LEAST_REACH)
        axes.set(xlim=(-reach, reach), ylim=(len(SCALES_UM) - 0.5, -0.5))
        axes.set_yticks(range(len(SCALES_UM)), [f"{s} µm" for s in SCALES_UM])
        axes.locator_params(axis="x", nbins=3)
        axes.set_xlabel("← B better      A better →", fontsize=6, labelpad=1)
    handles = [
        Line2D([], [], color="black", marker="o", ms=4, lw=1.2),
        Line2D([], [], color=style.MUTED, marker="o", ms=4, mfc="white", lw=1.2),
    ]
    names = ["clear of 0", "unclear (95 % interval over blocks)"]
    style.legend(figure, handles, names, 0.3, ROW_TOP + ROW_HEIGHT + 0.4)


def _draw_calibration(figure: Figure, sides: tuple[Side, Side]) -> None:
    for i, scale in enumerate((2, 8)):
        left = 4.15 + i * 1.72
        axes = style.place(figure, left, ROW_TOP, 1.2, ROW_HEIGHT)
        style.panel_letter(figure, left - 0.46, ROW_TOP - 0.22, "fg"[i])
        axes.set_title(f"Calibration, {scale} µm", fontweight="bold", pad=3)
        curves = [side.curves[scale] for side in sides]
        limits = curve_limits(curves)
        for curve, colour in zip(curves, COLOURS, strict=True):
            draw_curve(axes, curve, colour, limits)
        for n, (curve, colour) in enumerate(zip(curves, COLOURS, strict=True)):
            axes.text(
                0.04, 0.97 - 0.12 * n, f"Σ/Σ {decimals(curve.ratio)}", color=colour, va="top",
                fontsize=6, transform=axes.transAxes,
            )  # fmt: skip
        if any(curve.n_not_positive for curve in curves):
            shares = (f"{curve.share_not_positive:.1%}" for curve in curves)
            text = "no rate above 0:\nA {}, B {}".format(*shares).replace("%", " %")
            axes.text(
                0.98, 0.02, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=5.5
            )
        axes.set_xlabel("predicted, UMIs per bin", labelpad=1)
        if i == 0:
            axes.set_ylabel("observed mean", labelpad=1)


def _draw_maps(
    figure: Figure,
    sides: tuple[Side, Side],
    label: str,
    slide: SlideResult,
    counts: Array,
    shown: int,
    height: float,
) -> dict[str, Any]:
    """Draw the gene on the whole slide at 8 µm, and the square with most UMIs at 2 µm."""
    zoom = strongest_window(counts * slide.scored_mask)
    zoom_top = MAPS_TOP + height + 0.22
    name = style.write(figure, LEFT, MAPS_TOP - 0.42, label, fontsize=9, fontstyle="italic")
    style.fit(name, 3.0)
    style.write(
        figure, LEFT + style.size_in(name)[0] + 0.1, MAPS_TOP - 0.4,
        f"{slide.heading}; whole slide at 8 µm, square at 2 µm", color=style.MUTED,
    )  # fmt: skip
    limits = {}
    for letter, window, top, scale, tall in (
        ("h", slide.whole, MAPS_TOP, 8, height),
        ("i", zoom, zoom_top, 2, PANEL),
    ):
        mask, k = window.cut(slide.scored_mask), window.cut(counts)
        rates = [window.cut(side.rate) for side in sides]
        limit = limits[letter] = shared_limit([(rate, mask) for rate in rates], [(k, mask)])
        panels = [style.place(figure, LEFT + i * (PANEL + GAP), top, PANEL, tall) for i in range(4)]
        draw_stain(panels[0], slide.image, window)
        right = letter == "h" and is_lower_left(zoom, window)
        style.scale_bar(panels[0], window.extent_um, right=right)
        for axes, values in zip(panels[1:], (k, *rates), strict=True):
            drawn = draw_map(axes, values, mask, window, scale, limit)
        if letter == "h":
            for axes in panels:
                mark(axes, zoom)
            heads = "H&E", "Observed", "A", "B"
        else:
            bar = f"{UNIT} (an 8 µm bin); one UMI in a 2 µm bin is 16"
            colour_bar(
                figure, drawn, LEFT + PANEL + GAP, top + tall + 0.1, 3 * PANEL + 2 * GAP, bar
            )
            grey_key(figure, LEFT, top + tall + 0.1)
    for i, head in enumerate(heads):
        score = "" if i < 2 else _score(sides[i - 2].genes[shown])
        colour = "black" if i < 2 else COLOURS[i - 2]
        style.write(
            figure, LEFT + i * (PANEL + GAP) + (0.16 if i == 0 else 0), MAPS_TOP - 0.15,
            f"{head}{score}", color=colour, fontsize=6.5,
        )  # fmt: skip
    style.panel_letter(figure, LEFT, MAPS_TOP - 0.18, "h")
    style.panel_letter(figure, LEFT, zoom_top - 0.18, "i")
    return {
        "gene": label,
        "patient": slide.patient,
        "zoom_um": BIN_UM * zoom.cols,
        "colour_limits": {"whole": limits["h"], "zoom": limits["i"]},
        "scores": [
            {str(s): {"pcc": g.pcc, "ssim": g.ssim} for s, g in side.genes[shown].items()}
            for side in sides
        ],
    }


def _score(gene: Mapping[int, GeneScore]) -> str:
    return f"   PCC {decimals(gene[8].pcc)}   SSIM {decimals(gene[8].ssim)}"

"""All genes of a run with factors: PCC and its ceiling by abundance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from virchow_st.output.figures import style
from virchow_st.output.figures.labels import label_points
from virchow_st.output.figures.style import Picture
from virchow_st.run.all_genes import AllGenesRow
from virchow_st.types import BIN_UM, BoolArray, Float64Array

SCALES = (2, 8)  # µm, left and right
PREDICTED, OTHERS = "#0072b2", "#b3b3b3"
"""Colours of genes that are predicted beyond chance, and of others."""
_N_NAMED = 10
_PER_DECADE, _LEAST_GENES = 4, 5
"""Groups of genes per tenfold of abundance, and genes that a group needs to be drawn."""
_RASTERED_FROM = 500
"""Points of a PDF from which they are pixels, as thousands of vectors make it slow."""


@dataclass(frozen=True, eq=False)
class _Points:
    """The genes of one panel, (n,) each.

    Attributes:
        umis: Observed UMIs per 2 µm bin.
        pcc, ceiling: Scores at the panel's scale; NaN where undefined.
        predicted: Whether the gene is predicted beyond chance.
    """

    umis: Float64Array
    pcc: Float64Array
    ceiling: Float64Array
    predicted: BoolArray

    @property
    def drawn(self) -> BoolArray:
        """Genes with UMIs and a PCC."""
        found: BoolArray = (self.umis > 0) & ~np.isnan(self.pcc)
        return found


@style.styled
def abundance_figure(
    rows: Sequence[AllGenesRow], labels: Sequence[str], fdr: float, tested_um: int
) -> Picture:
    """Draw PCC and ceiling of every gene against its UMIs per bin, at 2 and at 8 µm.

    Lines are medians over groups of genes of similar abundance, and the band is the middle half of
    a group's PCCs.

    Args:
        rows: ``all_genes.csv``, all scales of each gene in its order.
        labels: What to call each gene.
        fdr: False discovery rate at which a gene counts as predicted.
        tested_um: Scale whose q values tell which genes are predicted, µm.
    """
    figure = style.new_figure(3.5)
    tested = np.array([row.q_value for row in rows if row.scale_um == tested_um])
    predicted = tested <= fdr
    n_tested = int((~np.isnan(tested)).sum())
    n_predicted = int(predicted.sum())
    rest = (
        f"{len(labels):,} genes; {n_predicted:,} of {n_tested:,} tested are predicted beyond chance"
    )
    style.title(figure, "PCC against abundance", rest, 7.0, italic=False)
    panels = {scale: _points(rows, scale, predicted) for scale in SCALES}
    limits = _limits(list(panels.values()))
    numbers: dict[str, object] = {}
    for column, (scale, points) in enumerate(panels.items()):
        axes = style.place(figure, 0.5 + column * 3.55, 0.72, 3.0, 2.3)
        style.panel_letter(figure, 0.06 + column * 3.55, 0.46, "ab"[column])
        groups = _draw(axes, points, scale, limits)
        n_out = int((~points.drawn).sum())
        n_absent = int(np.isnan(points.umis).sum())
        if n_out:
            why = {"without a UMI": n_out - n_absent, "not measured": n_absent}
            text = "not drawn: " + ", ".join(f"{n:,} {what}" for what, n in why.items() if n)
            axes.text(1, 1.02, text, transform=axes.transAxes, ha="right", fontsize=6)
        if scale == tested_um:
            _name(axes, points, labels, groups)
        numbers[str(scale)] = {
            "n_drawn": len(labels) - n_out,
            "n_without_umi": n_out - n_absent,
            "n_not_measured": n_absent,
            "groups": groups,
        }
    _legend(figure, tested_um)
    return Picture(
        figure,
        {
            "n_genes": len(labels),
            "n_tested": n_tested,
            "n_predicted": n_predicted,
            "fdr": fdr,
            "scales": numbers,
        },
    )


def _points(rows: Sequence[AllGenesRow], scale: int, predicted: BoolArray) -> _Points:
    at = [row for row in rows if row.scale_um == scale]
    mean, pcc, ceiling = (
        np.array([getattr(row, name) for row in at]) for name in ("mean", "pcc", "pcc_ceiling")
    )
    return _Points(mean / (scale // BIN_UM) ** 2, pcc, ceiling, predicted)


def _limits(panels: Sequence[_Points]) -> tuple[float, float]:
    """Limits of PCC that both panels share."""
    values = [points.pcc[points.drawn] for points in panels]
    tops = [[group["pcc_ceiling"] for group in _groups(points)] for points in panels]
    low, high = (float(f(np.concatenate([*values, *tops]), initial=0.0)) for f in (np.min, np.max))
    return low - 0.03, max(0.2, high + 0.06)


def _draw(
    axes: Axes, points: _Points, scale: int, limits: tuple[float, float]
) -> list[dict[str, float]]:
    """Draw the points and the groups of one panel; returns the numbers of the groups."""
    drawn = points.drawn
    look: dict[str, Any] = {"ms": 1.8 if drawn.sum() > _RASTERED_FROM else 3, "mew": 0, "ls": ""}
    look |= {"rasterized": bool(drawn.sum() > _RASTERED_FROM)}
    for which, colour, order in ((~points.predicted, OTHERS, 1), (points.predicted, PREDICTED, 2)):
        here = drawn & which
        axes.plot(
            points.umis[here], points.pcc[here], marker="o", color=colour, alpha=0.55,
            zorder=order, **look,
        )  # fmt: skip
    groups = _groups(points)
    x, median, low, high, top = (
        [group[name] for group in groups]
        for name in ("umis_per_2um_bin", "pcc", "pcc_quarter", "pcc_three_quarters", "pcc_ceiling")
    )
    axes.fill_between(x, low, high, color="black", alpha=0.14, linewidth=0, zorder=3)
    axes.plot(x, median, color="black", linewidth=1.2, zorder=4)
    axes.plot(x, top, color="black", linewidth=1.0, ls=(0, (4, 2)), zorder=4)
    axes.set_xscale("log")
    umis = points.umis[drawn]
    left, right = (umis.min() / 1.6, umis.max() * 1.6) if umis.size else (0.1, 1.0)
    axes.set_xlim(left, right)
    style.log_ticks(axes.xaxis, left, right, style.plain)
    axes.set_ylim(*limits)
    axes.axhline(0, color=style.MUTED, linewidth=0.5, zorder=0)
    axes.set_title(f"{scale} µm bins", fontweight="bold", pad=3)
    axes.set_xlabel("UMIs of the gene per 2 µm bin")
    axes.set_ylabel("PCC")
    return groups


def _groups(points: _Points) -> list[dict[str, float]]:
    """Medians of groups of drawn genes of similar abundance, the least abundant first."""
    drawn = np.flatnonzero(points.drawn)
    group = np.floor(_PER_DECADE * np.log10(points.umis[drawn]))
    found = []
    for value in np.unique(group):
        genes = drawn[group == value]
        if len(genes) < _LEAST_GENES:
            continue
        low, median, high = np.percentile(points.pcc[genes], (25, 50, 75))
        found.append(
            {
                "umis_per_2um_bin": float(np.median(points.umis[genes])),
                "n_genes": len(genes),
                "pcc": float(median),
                "pcc_quarter": float(low),
                "pcc_three_quarters": float(high),
                "pcc_ceiling": float(np.median(points.ceiling[genes])),
                "n_predicted": int(points.predicted[genes].sum()),
            }
        )
    return found


def _name(
    axes: Axes, points: _Points, labels: Sequence[str], groups: Sequence[dict[str, float]]
) -> None:
    """Name the genes with the highest PCC, where there is space."""
    pcc = np.where(points.drawn, points.pcc, -np.inf)
    best = [int(i) for i in np.argsort(-pcc, kind="stable")[:_N_NAMED] if np.isfinite(pcc[i])]
    x = np.where(points.drawn, points.umis, np.nan)
    lines = [np.empty((0, 2))]
    for name in ("pcc", "pcc_ceiling"):
        at = [(math.log(group["umis_per_2um_bin"]), group[name]) for group in groups]
        for (x0, y0), (x1, y1) in pairwise(at):
            between = np.exp(np.linspace(x0, x1, 40)), np.linspace(y0, y1, 40)
            lines.append(np.stack(between, axis=1))
    label_points(axes, x, points.pcc, labels, best, np.concatenate(lines))


def _legend(figure: Figure, tested_um: int) -> None:
    dot: dict[str, Any] = {"marker": "o", "ms": 3, "mew": 0, "ls": ""}
    handles = [
        Line2D([], [], color=PREDICTED, **dot),
        Line2D([], [], color=OTHERS, **dot),
        Line2D([], [], color="black", lw=1.2),
        Line2D([], [], color="black", lw=1.0, ls=(0, (4, 2))),
    ]
    names = [
        f"a gene predicted beyond chance at {tested_um} µm",
        "other genes",
        "genes of similar abundance: median PCC, middle half",
        "median ceiling",
    ]
    style.legend(figure, handles, names, 0.06, 0.29)

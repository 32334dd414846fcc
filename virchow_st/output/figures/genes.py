"""All genes: PCC and its ceiling, and PCC against the sparsity of the counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from virchow_st.output.figures import style
from virchow_st.output.figures.labels import label_points
from virchow_st.output.figures.style import Picture
from virchow_st.run.results import GeneScore

SCALES = (8, 2)  # µm, left and right
MOST_BARS = 60
INTERVAL = "#222222"
NULL = "#999999"

Scores = Mapping[int, GeneScore]
"""A gene's scores by scale in µm."""

# Positions and sizes, in inches.
PITCH, HEAD, FOOT, GAP = 0.145, 0.62, 0.42, 0.2
_LONGEST_NAME = 1.3


@style.styled
def genes_figure(
    genes: Sequence[Scores],
    labels: Sequence[str],
    intervals: Mapping[tuple[str, int], tuple[float, float]],
    n_panel: int,
) -> Picture:
    """Draw one bar per gene: PCC, its interval, its ceiling and its null, at 8 and at 2 µm.

    Args:
        genes: scores of the genes to draw; the best at 8 µm are drawn first.
        labels: names of the genes.
        intervals: 95 % interval of the PCC by gene id and scale, if there is one.
        n_panel: number of genes in the panel, of which these are the most abundant.
    """
    order = sorted(range(len(genes)), key=lambda i: (-_value(genes[i], 8, "pcc"), i))
    figure = style.new_figure(HEAD + PITCH * len(genes) + FOOT)
    which = f"{len(genes)} most abundant of {n_panel:,} genes" if len(genes) < n_panel else ""
    style.title(figure, "PCC by gene, and its ceiling", which, 7.0, italic=False)

    names = [
        style.fit(style.write(figure, 0, 0, labels[i], fontstyle="italic", fontsize=6.5),
                  _LONGEST_NAME)
        for i in order
    ]  # fmt: skip
    left = 0.12 + max(style.size_in(name)[0] for name in names)
    for row, name in enumerate(names):
        w, h = figure.get_size_inches()
        name.set(
            x=left / w, y=1 - (HEAD + PITCH * (row + 0.5)) / h, ha="right", va="center_baseline"
        )
    width = (style.WIDTH_IN - left - 0.06 - GAP - 0.12) / 2
    top = max(1.0, *(_value(g, s, "pcc_ceiling") for g in genes for s in SCALES))
    values = [_value(g, s, name) for g in genes for s in SCALES for name in ("pcc", "pcc_shuffled")]
    bounds = [low for low, _ in intervals.values()]
    for column, scale in enumerate(SCALES):
        place = left + 0.06 + column * (width + GAP), HEAD, width, PITCH * len(genes)
        axes = style.place(figure, *place)
        _bars(axes, [genes[i] for i in order], scale, intervals)
        axes.set_xlim(min(0.0, *values, *bounds) - 0.01, top)
        axes.set_title(f"{scale} µm bins", fontweight="bold", pad=3)
    _bar_legend(figure)
    numbers = [
        {"gene": labels[i], "scales": {str(s): _numbers(genes[i], s, intervals) for s in SCALES}}
        for i in order
    ]
    return Picture(figure, {"n_panel": n_panel, "n_drawn": len(genes), "genes": numbers})


def _numbers(
    gene: Scores, scale: int, intervals: Mapping[tuple[str, int], tuple[float, float]]
) -> dict[str, object]:
    score = gene[scale]
    interval = intervals.get((score.gene.id, scale))
    return {
        "pcc": score.pcc,
        "pcc_ci95": None if interval is None else list(interval),
        "pcc_ceiling": score.pcc_ceiling,
        "pcc_shuffled": score.pcc_shuffled,
    }


def _bars(
    axes: Axes,
    genes: Sequence[Scores],
    scale: int,
    intervals: Mapping[tuple[str, int], tuple[float, float]],
) -> None:
    y = np.arange(len(genes))
    scores = [gene[scale] for gene in genes]
    pcc = np.array([s.pcc for s in scores])
    axes.barh(y, np.nan_to_num(pcc), height=0.7, color=style.SCALE_COLOURS[scale], linewidth=0)
    for i, score in enumerate(scores):
        if (interval := intervals.get((score.gene.id, scale))) is not None:
            axes.plot(interval, [i, i], color=INTERVAL, linewidth=0.7, path_effects=style.halo(1.6))
        if np.isnan(score.pcc):
            axes.annotate("undefined", (0, i), (2, 0), textcoords="offset points", va="center",
                          fontsize=5.5, color=style.MUTED)  # fmt: skip
    axes.plot([s.pcc_ceiling for s in scores], y, "|", color="black", ms=5, mew=1.2)
    axes.plot([s.pcc_shuffled for s in scores], y, "o", mfc="white", mec=NULL, ms=2.2, mew=0.6)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set(ylim=(len(genes) - 0.5, -0.5), yticks=[], xlabel="PCC")
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.4, zorder=0)
    axes.set_axisbelow(True)


def _bar_legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], color=style.SCALE_COLOURS[8], lw=4, solid_capstyle="butt"),
        Line2D([], [], color=INTERVAL, lw=0.7),
        Line2D([], [], color="black", marker="|", ms=5, mew=1.2, ls=""),
        Line2D([], [], mfc="white", mec=NULL, marker="o", ms=2.2, mew=0.6, ls=""),
    ]
    names = ["PCC", "95 % interval", "ceiling, given Poisson noise", "null: other patches"]
    style.legend(figure, handles, names, 0.06, 0.29)


@style.styled
def sparsity_figure(
    genes: Sequence[Scores], labels: Sequence[str], chosen: Sequence[str]
) -> Picture:
    """Draw PCC and its ceiling against the share of bins that hold a UMI, at 2 and at 8 µm.

    Args:
        genes: scores of all genes.
        labels: names of the genes.
        chosen: ids of genes that are named before others.
    """
    figure = style.new_figure(3.35)
    n_genes = f"{len(genes):,} gene{'s' if len(genes) > 1 else ''}"
    style.title(figure, "PCC against sparsity", n_genes, 7.0, italic=False)
    ids = [gene[8].gene.id for gene in genes]
    numbers: dict[str, object] = {}
    for column, scale in enumerate((2, 8)):
        axes = style.place(figure, 0.5 + column * 3.55, 0.7, 3.0, 2.2)
        style.panel_letter(figure, 0.06 + column * 3.55, 0.44, "ab"[column])
        x, pcc, ceiling = (
            np.array([getattr(gene[scale], name) for gene in genes])
            for name in ("nonzero", "pcc", "pcc_ceiling")
        )
        drawn = (x > 0) & ~np.isnan(pcc)
        colour = style.SCALE_COLOURS[scale]
        axes.vlines(x[drawn], pcc[drawn], ceiling[drawn], color="#cccccc", linewidth=0.5, zorder=1)
        axes.plot(x[drawn], ceiling[drawn], "_", color="black", ms=4, mew=0.8, zorder=2)
        axes.plot(x[drawn], pcc[drawn], "o", color=colour, ms=3, mew=0, zorder=3)
        axes.set_xscale("log")
        _share_axis(axes, x[drawn])
        low = min(0.0, float(np.min(pcc[drawn], initial=0.0)))
        axes.set_ylim(low - 0.02, max(1.0, float(np.max(ceiling[drawn], initial=0.0))) + 0.02)
        axes.axhline(0, color=style.MUTED, linewidth=0.5, zorder=0)
        axes.set_title(f"{scale} µm bins", fontweight="bold", pad=3)
        axes.set_xlabel("bins with a UMI of the gene")
        axes.set_ylabel("PCC")
        far = np.argsort(-np.abs(np.where(drawn, ceiling - pcc, 0.0)))
        order = [ids.index(gene) for gene in chosen] + [int(i) for i in far[:12]]
        bars = [
            np.column_stack([np.full(20, a), np.linspace(b, c, 20)])
            for a, b, c in zip(x[drawn], pcc[drawn], ceiling[drawn], strict=True)
        ]
        label_points(
            axes, np.where(drawn, x, np.nan), pcc, labels, list(dict.fromkeys(order)),
            np.concatenate([np.empty((0, 2)), *bars]),
        )  # fmt: skip
        n_out = int((~drawn).sum())
        if n_out:
            text = f"not drawn: {n_out} without a UMI"
            axes.text(1, 1.02, text, transform=axes.transAxes, ha="right", fontsize=6)
        numbers[str(scale)] = {
            "n_drawn": int(drawn.sum()),
            "n_without_umi": n_out,
            "genes": [
                {"gene": labels[i], "nonzero": x[i], "pcc": pcc[i], "pcc_ceiling": ceiling[i]}
                for i in range(len(genes))
            ],
        }
    handles = [
        Line2D([], [], color=style.MUTED, marker="o", ms=3, mew=0, ls=""),
        Line2D([], [], color="black", marker="_", ms=4, mew=0.8, ls=""),
    ]
    names = ["PCC of a gene", "its ceiling, given Poisson noise"]
    style.legend(figure, handles, names, 0.06, 0.29)
    return Picture(figure, {"scales": numbers})


def _share_axis(axes: Axes, shares: np.ndarray) -> None:
    """Logarithmic axis of shares in per cent, a little wider than the values."""
    low = float(shares.min()) if shares.size else 0.01
    high = float(shares.max()) if shares.size else 1.0
    axes.set_xlim(low / 1.6, min(high * 1.6, 1.15))
    style.log_ticks(axes.xaxis, low / 1.6, min(high * 1.6, 1.0), lambda v: f"{100 * v:g} %")


def _value(gene: Scores, scale: int, name: str) -> float:
    """A score to sort or to scale by: 0 if it is undefined."""
    value = float(getattr(gene[scale], name))
    return 0.0 if np.isnan(value) else value

"""Calibration: observed means against predicted rates, pooled and gene by gene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from virchow_st.output.figures import style
from virchow_st.output.figures.labels import label_points
from virchow_st.output.figures.panels import decimals
from virchow_st.output.figures.reliability import LEAST, Curve
from virchow_st.output.figures.style import Picture
from virchow_st.run.results import GeneScore

SCALES = (2, 8)  # µm
RATIO_SCALE = 8
_WIDTH, _HEIGHT, _TOP, _STRIP = 1.75, 1.75, 0.62, 0.32
_LEFT, _PITCH = 0.56, 2.4


@style.styled
def calibration_figure(
    curves: Mapping[int, Curve],
    n_pooled: int,
    genes: Sequence[Mapping[int, GeneScore]],
    labels: Sequence[str],
    chosen: Sequence[str],
) -> Picture:
    """Draw (a, b) observed means by predicted rate at 2 and 8 µm and (c) the ratio of each gene.

    Args:
        curves: by scale, pooled over several genes and all test slides.
        n_pooled: number of pooled genes.
        genes: scores of every gene, by scale.
        labels: names of the genes.
        chosen: ids of genes that are named before others.
    """
    figure = style.new_figure(3.4)
    pooled = "all" if n_pooled == len(genes) else f"{n_pooled:,} of {len(genes):,}"
    rest = f"observed against predicted UMIs, {pooled} genes together in a and b"
    style.title(figure, "Calibration", rest, 7.0, italic=False)
    numbers: dict[str, object] = {}
    for column, scale in enumerate(SCALES):
        left = _LEFT + column * _PITCH
        curve, colour = curves[scale], style.SCALE_COLOURS[scale]
        axes = style.place(figure, left, _TOP, _WIDTH, _HEIGHT)
        style.panel_letter(figure, left - 0.5, _TOP - 0.22, "ab"[column])
        axes.set_title(f"{scale} µm bins", fontweight="bold", pad=3)
        limits = curve_limits([curve])
        draw_curve(axes, curve, colour, limits)
        axes.tick_params(labelbottom=False)
        axes.set_ylabel("observed mean, UMIs per bin")
        above = curve.ratio < 1  # where most of the curve lies, and the text does not
        axes.text(
            0.97 if above else 0.04, 0.04 if above else 0.96,
            f"Σ predicted / Σ observed\n{decimals(curve.ratio)}", transform=axes.transAxes,
            ha="right" if above else "left", va="bottom" if above else "top", fontsize=6.5,
        )  # fmt: skip
        strip = style.place(figure, left, _TOP + _HEIGHT + 0.06, _WIDTH, _STRIP)
        _draw_shares(strip, curve, colour, limits)
        strip.set_xlabel("predicted rate, UMIs per bin", labelpad=1)
        numbers[str(scale)] = curve.numbers()
    _draw_ratios(figure, genes, labels, chosen)
    notes = (
        f"Points hold at least {LEAST} bins and {LEAST} expected UMIs; bars: 95 % interval over "
        "spatial blocks, open points where all lie in one.",
        "Below a and b: the share of all pairs of a gene and a bin that each point stands for.",
    )
    style.write(figure, _LEFT, 3.1, "\n".join(notes), fontsize=6, color=style.MUTED)
    ratios = {
        label: gene[RATIO_SCALE].calibration for label, gene in zip(labels, genes, strict=True)
    }
    return Picture(figure, {"scales": numbers, "n_genes_pooled": n_pooled, "ratio_by_gene": ratios})


def curve_limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """Limits of both axes that include all points of the curves; one decade if there are none."""
    parts = [v for c in curves for v in (c.predicted, c.observed, np.nan_to_num(c.high))]
    values = np.concatenate(parts)
    values = values[values > 0]
    if not values.size:
        return 0.1, 1.0
    return float(values.min()) / 1.7, float(values.max()) * 1.7


def draw_curve(axes: Axes, curve: Curve, colour: str, limits: tuple[float, float]) -> None:
    """Draw a curve on logarithmic axes with the diagonal on which it should lie.

    A point without observed UMIs lies on the lower edge, as an open triangle.
    """
    axes.plot(limits, limits, color=style.MUTED, linewidth=0.6, linestyle="--", zorder=1)
    seen, sure = curve.observed > 0, ~np.isnan(curve.high)
    x, y = curve.predicted, np.where(seen, curve.observed, np.nan)
    axes.vlines(
        x[sure], np.maximum(curve.low[sure], limits[0]), curve.high[sure], color=colour,
        linewidth=0.8, zorder=2,
    )  # fmt: skip
    axes.plot(x, y, color=colour, linewidth=0.9, zorder=3)
    for part, fill in ((sure, colour), (~sure, "white")):
        axes.plot(x[part], y[part], "o", mfc=fill, mec=colour, mew=0.7, ms=2.8, zorder=4)
    axes.plot(
        x[~seen], np.full((~seen).sum(), limits[0]), "v", mfc="white", mec=colour, ms=3.5,
        mew=0.7, clip_on=False, zorder=4,
    )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
    for axis in (axes.xaxis, axes.yaxis):
        style.log_ticks(axis, *limits, style.plain)


def _draw_shares(axes: Axes, curve: Curve, colour: str, limits: tuple[float, float]) -> None:
    """One bar per point: the share of bins that it stands for."""
    share = curve.n / max(curve.n_bins, 1)
    x = curve.predicted
    if x.size:
        edges = np.sqrt(x[1:] * x[:-1])
        left = np.concatenate([[x[0] ** 2 / edges[0] if edges.size else x[0] / 1.2], edges])
        right = np.concatenate([edges, [x[-1] ** 2 / edges[-1] if edges.size else x[0] * 1.2]])
        axes.bar(left, share, right - left, align="edge", color=colour, alpha=0.45, linewidth=0)
    top = float(share.max()) if share.size else 1.0
    room = 1.6 if curve.n_not_positive else 1.05  # for the line of text
    axes.set(xscale="log", xlim=limits, ylim=(0, room * top))
    style.log_ticks(axes.xaxis, *limits, style.plain)
    axes.set_yticks([0, top], ["0", f"{top:.0%}".replace("%", " %")])
    if curve.n_not_positive:
        text = f"{curve.share_not_positive:.1%} have no rate above 0".replace("%", " %")
        axes.text(0.98, 1.0, text, transform=axes.transAxes, ha="right", va="top", fontsize=5.5)


def _draw_ratios(
    figure: Figure,
    genes: Sequence[Mapping[int, GeneScore]],
    labels: Sequence[str],
    chosen: Sequence[str],
) -> None:
    left = _LEFT + 2 * _PITCH
    axes = style.place(figure, left, _TOP, _WIDTH, _HEIGHT + 0.06 + _STRIP)
    style.panel_letter(figure, left - 0.5, _TOP - 0.22, "c")
    axes.set_title("ratio of each gene", fontweight="bold", pad=3)
    x = np.array([gene[RATIO_SCALE].mean for gene in genes])
    y = np.array([gene[RATIO_SCALE].calibration for gene in genes])
    drawn = (x > 0) & (y > 0)
    axes.axhline(1, color=style.MUTED, linewidth=0.6, linestyle="--", zorder=1)
    axes.plot(x[drawn], y[drawn], "o", color="#444444", ms=2.6, mew=0, zorder=2)
    axes.set(xscale="log", yscale="log")
    x_low, x_high = (float(x[drawn].min()), float(x[drawn].max())) if drawn.any() else (0.1, 1.0)
    axes.set_xlim(x_low / 1.6, x_high * 2.2)
    y_low, y_high = (
        (min(0.5, float(y[drawn].min())), max(2.0, float(y[drawn].max())))
        if drawn.any()
        else (0.5, 2.0)
    )
    axes.set_ylim(y_low / 1.15, y_high * 1.15)
    style.log_ticks(axes.xaxis, x_low / 1.6, x_high * 2.2, style.plain)
    style.log_ticks(axes.yaxis, y_low / 1.15, y_high * 1.15, style.plain)
    axes.set_xlabel("observed mean, UMIs per 8 µm bin", labelpad=1)
    axes.set_ylabel("Σ predicted / Σ observed")
    ids = [gene[RATIO_SCALE].gene.id for gene in genes]
    farthest = np.argsort(-np.abs(np.log(np.where(drawn, y, 1.0))))
    order = dict.fromkeys([ids.index(gene) for gene in chosen] + farthest[:10].tolist())
    line = np.column_stack([np.geomspace(*axes.get_xlim(), 60), np.ones(60)])
    label_points(axes, np.where(drawn, x, np.nan), y, labels, list(order), line)
    if n_out := int((~drawn).sum()):
        text = f"not drawn: {n_out} without UMIs or rate"
        axes.text(0.98, 0.02, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=5.5)

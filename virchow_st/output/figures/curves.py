"""The training of a run: loss, validation PCC and the weights of the scales by epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from virchow_st.output.figures import style
from virchow_st.output.figures.style import Picture
from virchow_st.run.history import ByScale, Epoch

HEIGHT = 4.2  # inches
LEFT = 0.52  # space for the tick labels and the label of an axis
TOP_B = 2.45  # of the axes in (b) and (c)


@style.styled
def curves_figure(history: Sequence[Epoch], metrics: Mapping[str, Any]) -> Picture:
    """Draw (a) loss of training and validation, a panel a scale; (b) PCC; (c) weights.

    Diamonds in (b) are the PCC on the test slides at the best epoch, whose checkpoint was tested.
    """
    figure = style.new_figure(HEIGHT)
    scales = sorted(history[0].validation_loss)
    pccs = {scale: metrics["scales"][str(scale)]["pcc"] for scale in scales}
    test = {scale: math.nan if v is None else float(v) for scale, v in pccs.items()}
    best = max((e.epoch for e in history if e.best), default=None)

    for axes, scale in zip(_row(figure, len(scales), top=0.45, height=1.2), scales, strict=True):
        axes.set_title(f"{scale} µm", fontweight="bold")
        _line(axes, history, lambda e: e.train_loss, scale, dashed=True)
        _line(axes, history, lambda e: e.validation_loss, scale)
        _epoch_axis(axes, history, best)
    figure.axes[0].set_ylabel("loss")
    style.panel_letter(figure, 0.06, 0.03, "a")

    pcc, weights = _row(figure, 2, top=TOP_B, height=1.35)
    for scale in scales:
        _line(pcc, history, lambda e: e.validation_pcc, scale)
        _line(weights, history, lambda e: e.weights, scale)
        if best is not None:
            pcc.plot(
                best, test[scale], "D", ms=4,
                mfc="white", mec=style.SCALE_COLOURS[scale], zorder=4,
            )  # fmt: skip
    pcc.set_ylabel("PCC, mean of genes")
    weights.set_ylabel("weight in the loss")
    weights.set_ylim(bottom=0)
    for axes, letter in ((pcc, "b"), (weights, "c")):
        _epoch_axis(axes, history, best)
        left = axes.get_position().x0 * style.WIDTH_IN
        style.panel_letter(figure, left - LEFT + 0.06, TOP_B - 0.3, letter)
    _legends(figure, scales)
    return Picture(figure, {"best_epoch": best, "test_pcc": {str(s): v for s, v in test.items()}})


def _row(figure: Figure, n: int, top: float, height: float) -> list[Axes]:
    """``n`` axes of equal size, side by side across the page."""
    pitch = (style.WIDTH_IN - 0.08) / n
    return [style.place(figure, LEFT + i * pitch, top, pitch - LEFT, height) for i in range(n)]


def _line(
    axes: Axes,
    history: Sequence[Epoch],
    of: Callable[[Epoch], ByScale],
    scale: int,
    dashed: bool = False,
) -> None:
    x = [e.epoch for e in history]
    y = [of(e).get(scale, float("nan")) for e in history]
    # Points as well as lines, so that a run of one epoch is visible.
    axes.plot(
        x, y, color=style.SCALE_COLOURS[scale], marker="o", clip_on=False,
        linestyle=(0, (3, 1.5)) if dashed else "-", markerfacecolor="white" if dashed else None,
        markeredgewidth=0.6, linewidth=0.9 if dashed else 1.2,
    )  # fmt: skip


def _epoch_axis(axes: Axes, history: Sequence[Epoch], best: int | None) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    first, last = history[0].epoch, history[-1].epoch
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.set_xlabel("epoch")
    if best is not None:
        axes.axvline(best, color=style.MUTED, linewidth=0.8, linestyle=":", zorder=0)


def _legends(figure: Figure, scales: Sequence[int]) -> None:
    """Draw the legends: line styles above (a); colours and the diamond above (b) and (c)."""
    grey = style.MUTED
    above = [
        Line2D([], [], color=grey, marker="o", mfc="white", mew=0.6, ls=(0, (3, 1.5)), lw=0.9),
        Line2D([], [], color=grey, marker="o", mew=0.6),
        Line2D([], [], color=grey, lw=0.8, ls=":"),
    ]
    names = ["training", "validation", "best epoch"]
    below = [Line2D([], [], color=style.SCALE_COLOURS[s], marker="o", mew=0.6) for s in scales]
    below.append(Line2D([], [], color=grey, marker="D", ms=4, mfc="white", ls=""))
    below_names = [f"{s} µm" for s in scales] + ["test slides"]
    style.legend(figure, above, names, 0.3, 0.05)
    style.legend(figure, below, below_names, 0.3, TOP_B - 0.27)

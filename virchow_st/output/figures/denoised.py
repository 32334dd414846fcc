"""One gene of a simulated slide: counts, best Gaussian, denoised rate and true rate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from virchow_st.output.figures import style
from virchow_st.types import BIN_UM, Array, BoolArray, Float32Array

SIDE = 1.68  # inches, of every panel
LEFT, GAP, TOP = 0.12, 0.08, 0.5
CLOSE_BINS = 128  # side of the close-up: 256 µm
_SHARE = 99.7  # percentile of the true rate, and of counts that are not 0, at which colours end


def draw_denoised(
    stem: Path,
    gene: str,
    maps: Mapping[str, tuple[Float32Array, float]],
    true: Float32Array,
    tissue: BoolArray,
) -> Path:
    """Draw `denoised_figure` into ``stem.png`` and return its path."""
    return style.save(denoised_figure(gene, maps, true, tissue), stem, ("png",))[0]


@style.styled
def denoised_figure(
    gene: str,
    maps: Mapping[str, tuple[Float32Array, float]],
    true: Float32Array,
    tissue: BoolArray,
) -> Figure:
    """Draw the whole slide above, and 256 µm of it below.

    Rates have one colour scale, counts their own.

    Args:
        gene: Symbol.
        maps: Title → map (R, C), UMIs per 2 µm bin, and Pearson's r with the truth; the first are
            the counts.
        true: (R, C) true rate.
        tissue: (R, C) bool.
    """
    figure = style.new_figure(TOP + 2 * (SIDE + GAP) + 0.12)
    style.title(figure, gene, "2 µm bins; r: correlation with the true rate", style.WIDTH_IN - 0.2)
    row, col = _fullest(np.where(tissue, true, 0))
    close = slice(row, row + CLOSE_BINS), slice(col, col + CLOSE_BINS)
    most = float(np.percentile(true[tissue], _SHARE))
    shown = [(f"{name}, r = {r:.2f}", values) for name, (values, r) in maps.items()]
    for i, (title, values) in enumerate([*shown, ("true rate", true)]):
        left, top = LEFT + i * (SIDE + GAP), TOP
        style.panel_letter(figure, left, TOP - 0.2, "abcd"[i])
        style.write(figure, left + 0.14, TOP - 0.17, title)
        limit = float(np.percentile(values[values > 0], _SHARE)) if i == 0 else most
        for part in (values, values[close]):
            axes = style.place(figure, left, top, SIDE, SIDE)
            whole = part is values
            inside = tissue if whole else tissue[close]
            extent = (0.0, BIN_UM * part.shape[1], BIN_UM * part.shape[0], 0.0)
            axes.imshow(
                np.ma.MaskedArray(part, ~inside | np.isnan(part)), cmap=style.rate_colours(),
                vmin=0.0, vmax=limit, extent=extent, interpolation="nearest",
            )  # fmt: skip
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_visible(False)
            if i == 0:
                style.scale_bar(axes, extent)
            top += SIDE + GAP
    return figure


def _fullest(values: Array) -> tuple[int, int]:
    """First row and column of the square with the largest sum, on a grid of half its side."""
    step = CLOSE_BINS // 2
    rows, cols = (max(n - CLOSE_BINS, 0) for n in values.shape)
    return max(
        ((r, c) for r in range(0, rows + 1, step) for c in range(0, cols + 1, step)),
        key=lambda at: values[at[0] : at[0] + CLOSE_BINS, at[1] : at[1] + CLOSE_BINS].sum(),
    )

"""The factors of a run with factors: small maps on a test slide, of bins or of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from virchow_st.field.read import Field
from virchow_st.kernels.pooling import pool_mask
from virchow_st.output.fields import cell_factors
from virchow_st.output.figures import style
from virchow_st.output.figures.rasters import UNIT_BINS, sum_bins
from virchow_st.output.figures.style import Picture
from virchow_st.types import BIN_UM, CELL_BINS, SCALES_UM, Array, Float64Array

if TYPE_CHECKING:
    from virchow_st.slide.cells.cell_map import CellMap

MOST = 24
"""Largest number of factors that are drawn."""
_ACROSS = 6
_IN_A_TITLE = 3
_LONGEST_PX = 400  # of a map that is printed 30 mm wide

# Positions and sizes, in inches.
_LEFT, _PITCH, _MAP, _HEAD, _TITLE, _FOOT = 0.06, 1.19, 1.13, 0.4, 0.3, 0.34


@style.styled
def factors_figure(field: Field, heading: str) -> Picture:
    """Draw the factors with the most UMIs, up to `MOST`, each on a colour scale of its own.

    Args:
        field: The predicted factors of a test slide.
        heading: What the title calls the slide.
    """
    scale = _scale(field.shape)
    factor = scale // BIN_UM
    known = pool_mask(field.tissue_mask & field.covered, CELL_BINS)
    if scale > BIN_UM * CELL_BINS:
        known = pool_mask(known[: known.shape[0] // 2 * 2, : known.shape[1] // 2 * 2], 2)
    maps = field.factors(scale_um=scale)[:, : known.shape[0], : known.shape[1]]
    n_bins = max(int(known.sum()), 1)
    umis = np.array([np.nansum(m[known], dtype=np.float64) for m in maps]) / n_bins / factor**2
    shown = FactorMaps(
        [np.ma.MaskedArray(of, ~known) for of in maps], [of[known] for of in maps], umis, scale
    )
    return _panels(shown, field, heading, "factors", 64 / scale**2)


@style.styled
def cell_factors_figure(field: Field, cells: CellMap, heading: str) -> Picture:
    """Draw the factors with the most UMIs in cells, each cell with the mean over its bins.

    Args:
        field: The predicted factors of a test slide.
        cells: On the field's bins.
        heading: What the title calls the slide.
    """
    scale = _scale(field.shape)
    factor = scale // BIN_UM
    known = field.tissue_mask & field.covered
    of_cells, n_bins = cell_factors(field, cells, known)
    means = UNIT_BINS * of_cells
    labels = np.where(known, cells.labels, 0)
    weight = sum_bins(labels > 0, factor)
    maps, values = [], []
    for of in means.T:
        total = sum_bins(np.concatenate([[0.0], of])[labels], factor)
        maps.append(np.ma.MaskedArray(total / np.maximum(weight, 1), weight == 0))
        values.append(of[n_bins > 0])
    umis = n_bins @ of_cells / max(int(n_bins.sum()), 1)
    shown = FactorMaps(maps, values, umis, scale)
    n_cells = f"{int((n_bins > 0).sum()):,} cells"
    picture = _panels(shown, field, heading, f"factors in {n_cells}", 1.0)
    picture.numbers["n_cells"] = int((n_bins > 0).sum())
    return picture


@dataclass(frozen=True, eq=False)
class FactorMaps:
    """K factors as they are drawn.

    Attributes:
        maps: K masked arrays of squares of ``scale_um``.
        values: K arrays whose 99.5th percentile ends the colours of each.
        umis: (K,) UMIs per bin of 2 µm.
        scale_um: Side of a square.
    """

    maps: Sequence[np.ma.MaskedArray]
    values: Sequence[Array]
    umis: Float64Array
    scale_um: int


def _panels(shown: FactorMaps, field: Field, heading: str, what: str, per_64um2: float) -> Picture:
    """Small maps with their shares and leading genes.

    Args:
        shown: What to draw.
        field: The factors' names.
        heading: Of the slide.
        what: What the title counts, "factors" and more.
        per_64um2: UMIs per 64 µm² for one of the values.
    """
    umis, scale = shown.umis, shown.scale_um
    order = np.argsort(-umis, kind="stable")[:MOST]
    across = min(_ACROSS, len(order))
    down = -(-len(order) // across)
    rows, cols = shown.maps[0].shape
    height = _MAP * min(rows / cols, 1.6)
    figure = style.new_figure(_HEAD + down * (height + _TITLE) + _FOOT)
    n_all = len(umis)
    which = f"{len(order)} of {n_all} {what}" if len(order) < n_all else f"{n_all} {what}"
    style.title(figure, "Factors", f"{heading}, {which}, most UMIs first", 7.0, italic=False)
    numbers = []
    total = float(umis.sum()) or 1.0
    extent = (0.0, scale * cols, scale * rows, 0.0)
    for place, k in enumerate(order.tolist()):
        left = _LEFT + place % across * _PITCH
        top = _HEAD + place // across * (height + _TITLE)
        leading = field.leading_genes[k]
        first = style.write(figure, left, top, f"{k + 1}", fontsize=7, fontweight="bold")
        share = style.write(
            figure, left + _MAP, top, f"{umis[k] / total:.0%}", fontsize=6, ha="right",
            color=style.MUTED,
        )  # fmt: skip
        indent = style.size_in(first)[0] + 0.05
        _write_leading(
            figure, left + indent, top, leading, _MAP - indent - style.size_in(share)[0] - 0.05
        )
        axes = style.place(figure, left, top + 0.15, _MAP, height)
        limit = float(np.percentile(shown.values[k], 99.5)) if shown.values[k].size else 0.0
        axes.imshow(
            shown.maps[k], cmap=style.rate_colours(), vmin=0, vmax=limit or 1.0, extent=extent,
            interpolation="antialiased", interpolation_stage="rgba",
        )  # fmt: skip
        axes.set_axis_off()
        if place == 0:
            style.scale_bar(axes, extent, fontsize=6)
        numbers.append(
            {
                "factor": k + 1,
                "umis_per_2um_bin": float(umis[k]),
                "share": float(umis[k] / total),
                "leading_genes": leading,
                "limit_per_64um2": limit * per_64um2,
            }
        )
    _colour_bar(figure, _HEAD + down * (height + _TITLE) + 0.06)
    return Picture(figure, {"scale_um": scale, "n_factors": n_all, "factors": numbers})


def _write_leading(
    figure: Figure, left: float, top: float, leading: Sequence[str], room: float
) -> None:
    """As many of the leading genes as fit into ``room`` inches, at least one."""
    for n in range(min(_IN_A_TITLE, len(leading)), 0, -1):
        names = ", ".join(leading[:n])
        text = style.write(figure, left, top + 0.005, names, fontsize=6, fontstyle="italic")
        if n == 1:
            style.fit(text, room)
        elif style.size_in(text)[0] > room:
            text.remove()
            continue
        break


def _scale(shape: tuple[int, int]) -> int:
    """8 µm, or 16 µm where maps of 8 µm would have more pixels than are printed."""
    side = max(shape) // CELL_BINS
    return SCALES_UM[2] if side <= _LONGEST_PX else SCALES_UM[3]


def _colour_bar(figure: Figure, top: float) -> None:
    axes = style.place(figure, _LEFT, top, 1.13, 0.07)
    axes.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=style.rate_colours())
    axes.set_axis_off()
    text = (
        "colours: from 0 to the 99.5th percentile of each factor; per cent: its share of the "
        "predicted UMIs"
    )
    style.write(figure, _LEFT + 1.2, top - 0.02, text, fontsize=6, color=style.MUTED)

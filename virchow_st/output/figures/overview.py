"""A slide of the run: H&E and tissue, patches by split, and sequencing depth."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.patches import Rectangle

from virchow_st.output.figures import style
from virchow_st.output.figures.panels import UNIT, colour_bar, frame
from virchow_st.output.figures.rasters import UNIT_BINS, Window, lightened, shrink, sum_bins
from virchow_st.output.figures.style import Picture
from virchow_st.run.overview import SlideOverview
from virchow_st.run.split import PARTS
from virchow_st.types import BIN_UM, Float64Array

_PARTS = tuple({"train": "training"}.get(part, part) for part in PARTS)
PART_COLOURS = ("#0072b2", "#e69f00", "#cc3377")
_OUTLINE, _GRID, _OFF = "#00b3a4", "#333333", style.RC["hatch.color"]
_LONGEST_PX = 1000
_MASK_BINS = 8  # the outline of the tissue is drawn on squares of 16 µm

# Positions and sizes, in inches.
LEFT, GAP, HEAD, FOOT = 0.06, 0.09, 0.62, 0.62
PANEL = (style.WIDTH_IN - 2 * LEFT - 2 * GAP) / 3


@style.styled
def overview_figure(slide: SlideOverview) -> Picture:
    """Draw (a) H&E with the outline of the tissue, (b) patches by split, (c) UMIs of all genes."""
    rows, cols = slide.tissue_mask.shape
    height = PANEL * min(max(rows / cols, 0.4), 1.6)
    figure = style.new_figure(HEAD + height + FOOT)
    part = " and ".join(name for i, name in enumerate(_PARTS) if (slide.parts == i).any())
    style.title(figure, "Slide, patches and split", f"{slide.heading}, {part}", 7.0, italic=False)
    image = shrink(slide.image, _LONGEST_PX)
    heads = "H&E and tissue", "Split", "UMIs of all genes"
    panels = []
    for i, head in enumerate(heads):
        left = LEFT + i * (PANEL + GAP)
        panels.append(style.place(figure, left, HEAD, PANEL, height))
        style.panel_letter(figure, left, HEAD - 0.2, "abc"[i])
        style.write(figure, left + 0.16, HEAD - 0.17, head, fontweight="bold")
    numbers = _numbers(slide)
    foot = HEAD + height + 0.08

    panels[0].imshow(image, extent=slide.whole.extent_um)
    _outline_tissue(panels[0], slide)
    style.scale_bar(panels[0], slide.whole.extent_um)
    lines = [f"{numbers['tissue_share']:.0%} of the patches is tissue".replace("%", " %")]
    key = [Rectangle((0, 0), 1, 1, fill=False, ec=_OUTLINE, lw=1)]
    if off := numbers["bins_off_image"]:
        key.append(Rectangle((0, 0), 1, 1, fill=False, ec=_OFF, hatch="//////", lw=0.5))
        lines.append(f"{off:,} bins off the image")
    for i, (handle, line) in enumerate(zip(key, lines, strict=True)):
        style.legend(figure, [handle], [line], LEFT, foot + 0.14 * i)

    panels[1].imshow(lightened(image), extent=slide.whole.extent_um)
    _colour_patches(panels[1], slide)
    handles, names = [], []
    for i, name in enumerate(_PARTS):
        if n := numbers["patches"][name]:
            handles.append(Rectangle((0, 0), 1, 1, color=PART_COLOURS[i], alpha=0.6, lw=0))
            names.append(f"{name}, {n:,} patch{'es' if n > 1 else ''}")
    left = LEFT + PANEL + GAP
    for i, (handle, name) in enumerate(zip(handles, names, strict=True)):
        style.legend(figure, [handle], [name], left, foot + 0.14 * i)
    if numbers["blocks"]:
        bold = f"bold: {numbers['blocks']} blocks of {slide.block_um} µm for the intervals"
        style.write(figure, left, foot + 0.14 * len(names), bold, fontsize=6.5)

    depth = _depth(slide)
    drawn = panels[2].imshow(
        depth, extent=slide.whole.extent_um, cmap=style.depth_colours(), vmin=0,
        vmax=float(np.nanmax(depth)) if np.isfinite(depth).any() else 1.0,
        interpolation="nearest",
    )  # fmt: skip
    panels[2].set_facecolor(style.UNSCORED)
    left = LEFT + 2 * (PANEL + GAP)
    colour_bar(figure, drawn, left + 0.1, foot, PANEL - 0.2, f"{UNIT} of tissue", extend="neither")
    for axes in panels:
        frame(axes, slide.whole)
    return Picture(figure, numbers)


def _numbers(slide: SlideOverview) -> dict[str, Any]:
    in_patches = sum(p.rows * p.cols for p in slide.patches)
    valid = sum(int(p.cut(slide.validity_mask).sum()) for p in slide.patches)
    tissue = int(slide.tissue_mask.sum())
    return {
        "patches": {name: int((slide.parts == i).sum()) for i, name in enumerate(_PARTS)},
        "blocks": len(set(slide.blocks[slide.blocks >= 0].tolist())),
        "block_um": slide.block_um,
        "tissue_bins": tissue,
        "tissue_share": tissue / in_patches,
        "bins_off_image": in_patches - valid,
        "total_umi": int(slide.total_umi.sum()),
        "umi_per_64_um2": UNIT_BINS * float(slide.total_umi.sum()) / tissue if tissue else None,
    }


def _outline_tissue(axes: Axes, slide: SlideOverview) -> None:
    """Outline tissue and patches, and hatch bins outside the slide image."""
    y, x, tissue = _coarse(slide.tissue_mask)
    if min(tissue.shape) > 1:
        axes.contour(x, y, tissue, levels=[0.5], colors=[_OUTLINE], linewidths=0.7)
        outside = 1 - _coarse(slide.validity_mask)[2]
        inside_patch = np.zeros(slide.tissue_mask.shape, bool)
        for place in slide.patches:
            place.cut(inside_patch)[:] = True
        outside *= _coarse(inside_patch)[2]
        if outside.max() > 0.5:
            axes.contourf(x, y, outside, levels=[0.5, 2], colors="none", hatches=["//////"])
            axes.contour(x, y, outside, levels=[0.5], colors=[_OFF], linewidths=0.5)
    squares = PatchCollection([_square(place) for place in slide.patches])
    squares.set(facecolor="none", edgecolor=_GRID, linewidth=0.25)
    axes.add_collection(squares)


def _coarse(mask: np.ndarray) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Row and column positions (µm) of squares of a mask, and the share of True in each."""
    share = sum_bins(mask, _MASK_BINS) / _MASK_BINS**2
    y, x = (_MASK_BINS * BIN_UM * (np.arange(n, dtype=np.float64) + 0.5) for n in share.shape)
    return y, x, share


def _colour_patches(axes: Axes, slide: SlideOverview) -> None:
    """Fill patches by split, and outline the spatial blocks of the test patches."""
    for part, colour in enumerate(PART_COLOURS):
        places = [p for p, of in zip(slide.patches, slide.parts, strict=True) if of == part]
        squares = PatchCollection([_square(place) for place in places])
        squares.set(facecolor=colour, edgecolor="white", linewidth=0.4, alpha=0.4)
        axes.add_collection(squares)
    patch_points = 72 * PANEL / max(n // slide.patches[0].rows for n in slide.tissue_mask.shape)
    width = min(1.0, patch_points / 12)
    edges = LineCollection(_block_edges(slide), colors="black", linewidths=width)
    edges.set_capstyle("projecting")
    axes.add_collection(edges)


def _block_edges(slide: SlideOverview) -> list[list[tuple[float, float]]]:
    """Sides of test patches at the border of their block, as (x, y) in µm."""
    block = {
        (place.row, place.col): number
        for place, number in zip(slide.patches, slide.blocks.tolist(), strict=True)
    }
    lines = []
    for place in slide.patches:
        own = block[place.row, place.col]
        if own < 0:
            continue
        left, right, bottom, top = place.extent_um
        sides = {
            (-place.rows, 0): [(left, top), (right, top)],
            (place.rows, 0): [(left, bottom), (right, bottom)],
            (0, -place.cols): [(left, top), (left, bottom)],
            (0, place.cols): [(right, top), (right, bottom)],
        }
        for (down, across), line in sides.items():
            if block.get((place.row + down, place.col + across)) != own:
                lines.append(line)
    return lines


def _square(place: Window) -> Rectangle:
    left, right, bottom, top = place.extent_um
    return Rectangle((left, top), right - left, bottom - top)


def _depth(slide: SlideOverview) -> Float64Array:
    """UMIs of all genes per 64 µm² of tissue, one value per patch position; NaN without patch."""
    side = slide.patches[0].rows
    rows, cols = (n // side for n in slide.tissue_mask.shape)
    depth = np.full((rows, cols), np.nan)
    for place, umi in zip(slide.patches, slide.total_umi.tolist(), strict=True):
        if n := int(place.cut(slide.tissue_mask).sum()):
            depth[place.row // side, place.col // side] = UNIT_BINS * umi / n
    return depth

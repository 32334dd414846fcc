"""The tissue found by ``vst predict``: outline and patches on the slide, and the threshold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle

from virchow_st.output.figures import style
from virchow_st.output.figures.rasters import shrink
from virchow_st.types import PATCH_UM, BoolArray, Int64Array, UInt8Array

LONGEST_PX = 1600
"""Print shows about 1400 px of the map."""
_MAP_IN = 4.6  # largest width and height of the map
_OUTLINE, _PATCHES = "#d1a800", "#31688e"


@style.styled
def draw_tissue(
    path: Path,
    overview: UInt8Array,
    um_per_px: float,
    mask: BoolArray,
    histogram: Int64Array,
    threshold: int,
    corners_um: Int64Array,
) -> None:
    """Draw the slide with the outline of the tissue and the patches, beside the histogram.

    Args:
        path: PNG to write.
        overview: (H, W, 3) uint8 RGB of the whole slide.
        um_per_px: side of its pixels, µm.
        mask: (h, w) bool over the same area, True = tissue.
        histogram: (256,) number of pixels by saturation.
        threshold: saturation above which a pixel is tissue.
        corners_um: (P, 2) first row and column of each patch, µm from the image's corner.
    """
    height_um, width_um = (n * um_per_px for n in overview.shape[:2])
    scale = _MAP_IN / max(height_um, width_um)
    h, w = height_um * scale, width_um * scale
    figure = style.new_figure(max(h, 1.9) + 0.65)
    style.write(figure, 0.08, 0.06, "Tissue and patches", fontsize=9)
    detail = f"{len(corners_um):,} patches of {PATCH_UM} µm"
    style.write(figure, 0.08, 0.22, detail, color=style.MUTED)
    axes = style.place(figure, 0.08, 0.42, w, h)
    extent = (0.0, width_um, height_um, 0.0)
    axes.imshow(shrink(overview, LONGEST_PX), extent=extent, interpolation="antialiased")
    squares = [Rectangle((x, y), PATCH_UM, PATCH_UM) for y, x in corners_um.tolist()]
    axes.add_collection(
        PatchCollection(squares, facecolor="none", edgecolor=_PATCHES, linewidth=0.4, alpha=0.8)
    )
    y, x = (
        side * (np.arange(n) + 0.5) / n
        for side, n in zip((height_um, width_um), mask.shape, strict=True)
    )
    axes.contour(x, y, mask, levels=[0.5], colors=[_OUTLINE], linewidths=0.9)
    axes.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=style.MUTED, linewidth=0.4)
    style.scale_bar(axes, extent)

    left = 0.08 + w + 0.62
    bars = style.place(figure, left, 0.62, style.WIDTH_IN - left - 0.15, 1.25)
    style.write(figure, left, 0.42, "Saturation of the slide's pixels")
    share = histogram / histogram.sum()
    value = np.arange(len(histogram))
    bars.fill_between(value, share, step="mid", color="#bdbdbd", linewidth=0)
    bars.fill_between(
        value, share, where=(value > threshold).tolist(), step="mid", color=_OUTLINE, linewidth=0
    )
    bars.axvline(threshold + 0.5, color="black", linewidth=0.8)
    last = int(np.flatnonzero(np.cumsum(share) > 0.9995)[0])
    bars.set(
        xlim=(0, max(last, 2 * threshold)), ylim=(share[share > 0].min(), None), yscale="log",
        xlabel="saturation, of 255", ylabel="share of pixels",
    )  # fmt: skip
    bars.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    bars.annotate(
        f"> {threshold}: tissue", (threshold + 0.5, 1), (3, -2), va="top",
        xycoords=("data", "axes fraction"), textcoords="offset points",
    )  # fmt: skip
    style.save(figure, path.with_suffix(""), ("png",))

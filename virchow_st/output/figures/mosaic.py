"""The patches where a gene is strongest: H&E, observed and predicted, in one arrangement."""

from __future__ import annotations

import math
from collections.abc import Sequence

from virchow_st.output.figures import style
from virchow_st.output.figures.panels import UNIT, colour_bar, decimals, draw_map, draw_stain
from virchow_st.output.figures.patch_scores import score_patch
from virchow_st.output.figures.rasters import Window, shared_limit
from virchow_st.output.figures.style import Picture
from virchow_st.run.maps import SlideResult
from virchow_st.types import Array, Float32Array

SCALE = 8  # µm
MOST = 16  # patches
_COLUMNS = 4

# Positions and sizes, in inches.
LEFT, GAP, BETWEEN, HEAD, CAPTION, FOOT = 0.06, 0.04, 0.14, 0.66, 0.13, 0.42
MOSAIC = (style.WIDTH_IN - 2 * LEFT - 2 * BETWEEN) / 3


@style.styled
def mosaic_figure(
    slide: SlideResult, rate: Float32Array, counts: Array, label: str, places: Sequence[Window]
) -> Picture:
    """Draw patches three times, in the same positions: H&E, observed and predicted at 8 µm.

    Args:
        slide: the slide.
        rate: (R, C) expected UMIs per 2 µm bin of the gene.
        counts: (R, C) observed UMIs per 2 µm bin of the gene.
        label: names the gene in the title.
        places: the patches, strongest first, at least one and at most `MOST`.
    """
    columns = min(_COLUMNS, math.ceil(math.sqrt(len(places))))
    rows = math.ceil(len(places) / columns)
    side = (MOSAIC - (columns - 1) * GAP) / columns
    pitch = side + CAPTION + GAP
    figure = style.new_figure(HEAD + rows * pitch + FOOT)
    style.title(figure, label, slide.heading, style.WIDTH_IN - 0.2)
    first = "H&E, most UMIs first" if len(places) > 1 else "H&E, most UMIs"
    heads = first, f"Observed, {SCALE} µm", f"Predicted, {SCALE} µm"
    notes = ("bin row, column", "UMIs", "PCC / SSIM")
    lefts = [LEFT + i * (MOSAIC + BETWEEN) for i in range(3)]
    for left, letter, head, note in zip(lefts, "abc", heads, notes, strict=True):
        style.panel_letter(figure, left, HEAD - 0.3, letter)
        style.write(figure, left + 0.16, HEAD - 0.27, head, fontweight="bold")
        style.write(figure, left + 0.16, HEAD - 0.14, f"below: {note}", fontsize=6)

    cuts = [(p.cut(rate), p.cut(counts), p.cut(slide.scored_mask)) for p in places]
    limit = shared_limit([(r, m) for r, _, m in cuts], [(k, m) for _, k, m in cuts])
    numbers = []
    for i, (place, (lam, k, mask)) in enumerate(zip(places, cuts, strict=True)):
        top, right = HEAD + i // columns * pitch, i % columns * (side + GAP)
        panels = [style.place(figure, left + right, top, side, side) for left in lefts]
        draw_stain(panels[0], slide.image, place)
        for axes, values in zip(panels[1:], (k, lam), strict=True):
            drawn = draw_map(axes, values, mask, place, SCALE, limit)
        scores, umis = score_patch(lam, k, mask, SCALE), int(k.sum())
        at = slide.row0 + place.row, slide.col0 + place.col
        captions = (
            f"{at[0]}, {at[1]}",
            f"{umis:,}",
            f"{decimals(scores['pcc'])} / {decimals(scores['ssim'])}",
        )
        for left, caption in zip(lefts, captions, strict=True):
            centre = left + right + side / 2
            style.write(figure, centre, top + side + 0.025, caption, ha="center", fontsize=6)
        if i == 0:
            style.scale_bar(panels[0], place.extent_um, fontsize=6)
        numbers.append({"bin": list(at), "umis": umis, **scores})
    foot = HEAD + rows * pitch + 0.02
    colour_bar(figure, drawn, lefts[1], foot, 2 * MOSAIC + BETWEEN, f"{UNIT} (an 8 µm bin)")
    return Picture(figure, {"scale_um": SCALE, "patches": numbers, "colour_limit": limit})

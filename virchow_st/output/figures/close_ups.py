"""Single patches: several genes, each where it has the most UMIs, at 2 and at 8 µm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from virchow_st.output.figures import style
from virchow_st.output.figures.panels import (
    UNIT,
    decimals,
    draw_map,
    draw_stain,
    grey_key,
    upright_bar,
)
from virchow_st.output.figures.patch_scores import score_patch
from virchow_st.output.figures.rasters import Window, shared_limit, strongest
from virchow_st.output.figures.style import Picture
from virchow_st.run.maps import SlideResult
from virchow_st.run.panel import Gene
from virchow_st.types import Array, Float32Array

SCALES = (2, 8)  # µm
MOST_ROWS = 5  # on a page

# Positions and sizes, in inches.
LEFT, ROW_NAMES, GAP, HEAD, CAPTION, BAR, FOOT = 0.06, 0.22, 0.05, 0.55, 0.3, 0.42, 0.32
PANEL = (style.WIDTH_IN - LEFT - ROW_NAMES - 4 * GAP - BAR) / 5
PITCH = PANEL + CAPTION + 0.06


@dataclass(frozen=True)
class GenePatch:
    """One gene in one patch."""

    label: str
    place: Window
    rate: Float32Array  # (128, 128)
    counts: Array  # (128, 128)


def strong_patches(
    slide: SlideResult, genes: Sequence[tuple[Gene, str]], most: int = MOST_ROWS
) -> list[GenePatch]:
    """The patches with the most observed UMIs of each gene, as many per gene as fit on a page.

    Genes are given with their labels and keep their order. A gene without UMIs has no patch.
    """
    each = max(1, most // len(genes))
    found = []
    for gene, label in genes:
        rate, counts = slide.layers(gene)
        for place in strongest(slide.patches, counts, each):
            found.append(GenePatch(label, place, place.cut(rate).copy(), place.cut(counts).copy()))
    return found


@style.styled
def patches_figures(slide: SlideResult, patches: Sequence[GenePatch]) -> list[Picture]:
    """Draw one row per patch: H&E, observed and predicted at 2 µm, and both at 8 µm.

    All maps of a row share one colour scale. A page has `MOST_ROWS` rows.
    """
    starts = range(0, len(patches), MOST_ROWS)
    return [_page(slide, patches[start : start + MOST_ROWS]) for start in starts]


def _page(slide: SlideResult, patches: Sequence[GenePatch]) -> Picture:
    figure = style.new_figure(HEAD + len(patches) * PITCH + FOOT)
    subject = "Patches of strongest signal"
    style.title(figure, subject, slide.heading, 6.0, italic=False)
    heads = ["H&E", *(f"{kind}, {s} µm" for s in SCALES for kind in ("Observed", "Predicted"))]
    for column, head in enumerate(heads):
        centre = _column(column) + PANEL / 2
        style.write(figure, centre, HEAD - 0.18, head, ha="center", fontweight="bold")
    numbers = [_row(figure, slide, patch, HEAD + i * PITCH) for i, patch in enumerate(patches)]
    foot = HEAD + len(patches) * PITCH + 0.02
    grey_key(figure, LEFT + ROW_NAMES, foot)
    notes = (
        f"colours: {UNIT} (an 8 µm bin)",
        "ceiling: what counts this sparse allow; zeros: SSIM of predicting nothing",
    )
    for i, note in enumerate(notes):
        style.write(figure, _column(2), foot + 0.04 + 0.12 * i, note, va="center_baseline")
    return Picture(figure, {"patches": numbers})


def _row(figure: Figure, slide: SlideResult, patch: GenePatch, top: float) -> dict[str, object]:
    """Draw one patch and return the numbers that are printed."""
    place, mask = patch.place, patch.place.cut(slide.scored_mask)
    name = style.write(
        figure, LEFT, top + PANEL / 2, patch.label, rotation=90, va="center", fontsize=8,
        fontstyle="italic",
    )  # fmt: skip
    style.fit(name, PANEL, upright=True)
    umis = int(patch.counts.sum())
    row, col = slide.row0 + place.row, slide.col0 + place.col
    stain = style.place(figure, _column(0), top, PANEL, PANEL)
    draw_stain(stain, slide.image, place)
    style.scale_bar(stain, place.extent_um)
    _caption(figure, 0, top, f"bin row {row}, column {col}\n{umis:,} UMIs observed")

    limit = shared_limit([(patch.rate, mask)], [(patch.counts, mask)])
    scores = {scale: score_patch(patch.rate, patch.counts, mask, scale) for scale in SCALES}
    for i, scale in enumerate(SCALES):
        for kind, values in enumerate((patch.counts, patch.rate)):
            axes = style.place(figure, _column(1 + 2 * i + kind), top, PANEL, PANEL)
            drawn = draw_map(axes, values, mask, place, scale, limit)
        s = scores[scale]
        text = (
            f"PCC {decimals(s['pcc'])} (ceiling {decimals(s['pcc_ceiling'])})\n"
            f"SSIM {decimals(s['ssim'])} (zeros {decimals(s['ssim_all_zero'])})"
        )
        _caption(figure, 2 + 2 * i, top, text)
    upright_bar(figure, drawn, _column(4) + PANEL + 0.06, top, PANEL)
    return {
        "gene": patch.label,
        "bin": [row, col],
        "umis": umis,
        "scales": {str(scale): of_scale for scale, of_scale in scores.items()},
        "colour_limit": limit,
    }


def _column(n: int) -> float:
    return LEFT + ROW_NAMES + n * (PANEL + GAP)


def _caption(figure: Figure, column: int, top: float, text: str) -> None:
    centre = _column(column) + PANEL / 2
    style.write(figure, centre, top + PANEL + 0.04, text, ha="center", fontsize=6)

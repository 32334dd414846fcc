"""Every figure shows a marker at its bin, however the slide lay in the scanner."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from figure_run import FigureRun, all_pictures
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tiny_slide import COMBINATIONS, TinySlide, draw_markers, write_image

from virchow_st.config import ExtractConfig
from virchow_st.extract.slide import extract_slide
from virchow_st.output.figures.style import styled
from virchow_st.run.maps import write_maps
from virchow_st.run.overview import write_overview
from virchow_st.run.panel import Panel
from virchow_st.run.split import Member, Split
from virchow_st.store.reader import Store

pytestmark = pytest.mark.usefixtures("markers_for_tissue")

ROWS, COLS = 128, 256  # two patches side by side
MARKER = (37, 181)
SIDE = 11  # bins
# Where the marker would be, were the slide mirrored, turned or transposed somewhere on the way, and
# in the other patch.
ELSEWHERE = [(90, 181), (37, 74), (90, 74), (53, 165), (74, 165), (53, 202), (37, 53), (90, 53)]

SLOW = [kind for kind in COMBINATIONS if kind not in ("turn 1 mirror perspective", "turn 2")]


def marked_store(folder: Path, kind: str) -> Store:
    """A slide, dark and full of UMIs of two genes in one square, through the whole extraction."""
    slide = TinySlide(rows=ROWS, cols=COLS, kind=kind, n_genes=6)
    slide.tissue[:] = True
    slide.counts[:] = 0
    slide.counts[:2, ::16, ::16] = 1  # a little everywhere, so that the other patch is drawn too
    reach = SIDE // 2
    row, col = MARKER
    slide.counts[:2, row - reach : row + reach + 1, col - reach : col + reach + 1] = 9
    picture = draw_markers(slide.homography, slide.image_size, [MARKER], side=SIDE)
    image = write_image(folder / "he.tif", picture, "tiles")
    slide.write(folder / "outs")
    config = ExtractConfig(encoder="stain", device="cpu")
    return extract_slide(folder / "outs", image, folder / "a.vst", "P5", config)


def marked_run(folder: Path, kind: str) -> Path:
    """Result files of a run whose predictions are the marked slide's counts."""
    store = marked_store(folder, kind)
    panel = Panel(store.genes.ids[:2], ("MARKER", "OTHER"))
    # Tables and curves are of another slide; what shows maps is replaced.
    case = FigureRun(lattice=[(0, 0), (0, 1)], symbols=panel.symbols, means=[0.1, 0.1])
    case.ids = list(panel.ids)
    path = case.write(folder / "run")
    infos = store.patch_table
    with write_maps(path / "maps" / "P5.h5", store, panel, infos, np.arange(2)) as maps:
        for patch in store:
            counts = patch.dense_counts(panel.indices(store))
            maps.write(patch.info, counts, counts, patch.tissue_mask, patch.image)
    members = tuple(Member(0, i) for i in range(len(store)))
    split = Split((), (), members, ("",))
    write_overview(path / "overview.h5", [store], split, {m: m.patch for m in members}, 256)
    return path


def panels_with_the_marker(figure: Figure) -> Iterator[Axes]:
    """Axes that show an image of µm in which the marker and all of ``elsewhere`` would be."""
    col_um, row_um = 2 * MARKER[1] + 1, 2 * MARKER[0] + 1
    for axes in figure.axes:
        # Colour bars and scatters have no image; depth has a cell a patch.
        if not axes.images or min(axes.images[0].get_array().shape[:2]) < 16:
            continue
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        if left < col_um < right and top < row_um < bottom:
            yield axes


def brightness(figure: Figure, axes: Axes, row: int, col: int) -> float:
    """Mean of the drawn pixels about a bin, 0 to 255."""
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    x, y = axes.transData.transform((2 * col + 1, 2 * row + 1))
    at_row, at_col = round(pixels.shape[0] - y), round(x)
    return float(pixels[at_row - 1 : at_row + 2, at_col - 1 : at_col + 2].mean())


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow if k in SLOW else ()) for k in COMBINATIONS]
)
def test_a_marker_is_drawn_at_its_bin(kind: str, tmp_path: Path) -> None:
    run = marked_run(tmp_path, kind)
    other = Path(shutil.copytree(run, tmp_path / "other"))
    seen: dict[str, int] = {}
    for name, pages in all_pictures(run, other, n_genes=1).items():
        for picture in pages:
            styled(picture.figure.canvas.draw)()
            for axes in panels_with_the_marker(picture.figure):
                is_stain = axes.images[0].get_array().ndim == 3
                sign = -1 if is_stain else 1  # dark in H&E, bright in maps
                there = sign * brightness(picture.figure, axes, *MARKER)
                others = [
                    sign * brightness(picture.figure, axes, row, col)
                    for row, col in ELSEWHERE
                    if axes.get_xlim()[0] < 2 * col < axes.get_xlim()[1]
                ]
                assert others
                assert there > max(others) + 40, (name, axes.get_position())
                seen[name] = seen.get(name, 0) + 1
    # Each H&E with its maps, whole slide and enlarged; the marked patch alone; H&E and split.
    assert seen == {
        "multiscale_P5_MARKER": 14, "mosaic_P5_MARKER": 3, "patches_P5": 5, "overview_P5": 2,
        "against": 8,
    }  # fmt: skip

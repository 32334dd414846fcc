"""Figures with maps: multiscale, patches, mosaic, two runs against each other, overview."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from figure_run import COL0, ROW0, FigureRun
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.stats import pearsonr
from skimage.measure import block_reduce
from skimage.metrics import structural_similarity

from virchow_st.errors import ConfigError
from virchow_st.output.figures.close_ups import MOST_ROWS, patches_figures, strong_patches
from virchow_st.output.figures.mosaic import MOST, mosaic_figure
from virchow_st.output.figures.multiscale import multiscale_figure
from virchow_st.output.figures.overview import PART_COLOURS, overview_figure
from virchow_st.output.figures.rasters import (
    Window,
    density,
    shared_limit,
    strongest,
    strongest_window,
)
from virchow_st.output.figures.style import UNSCORED, Picture
from virchow_st.run.maps import open_maps
from virchow_st.run.overview import read_overviews
from virchow_st.run.results import read_per_gene

CASE = FigureRun()
MASK = CASE.mask


def draw_gene(run: Path, n: int) -> Picture:
    scores = read_per_gene(run)
    with open_maps(run / "maps" / "P5.h5") as slide:
        gene = slide.genes[n]
        by_scale = {s.scale_um: s for s in scores if s.gene == gene}
        return multiscale_figure(slide, *slide.layers(gene), gene.symbol, by_scale)


def images(figure: Figure) -> list[Any]:
    return [axes.images[0] for axes in figure.axes if axes.images]


def texts(figure: Figure) -> list[str]:
    return [t.get_text() for t in figure.texts] + [a.get_ylabel() for a in figure.axes]


# --- the multi-scale figure ------------------------------------------------------------------


def test_prediction_and_observation_of_a_region_share_one_colour_scale(drawn_run: Path) -> None:
    picture = draw_gene(drawn_run, 0)
    panels = images(picture.figure)
    assert len(panels) == 14  # twice: H&E, then predicted and observed at 8, 4 and 2 µm
    rate, counts = CASE.rates[0].astype(np.float32), CASE.counts[0]
    window = strongest_window(counts)
    parts = [window.cut(values) for values in (rate, counts, MASK)]
    limits = [
        shared_limit([(lam, mask)], [(k, mask)]) for lam, k, mask in ((rate, counts, MASK), parts)
    ]
    for half, limit in ((panels[1:7], limits[0]), (panels[8:], limits[1])):
        assert {m.get_clim() for m in half} == {(0, limit)}
    assert picture.numbers["colour_limits"] == {"whole": limits[0], "zoom": limits[1]}
    assert picture.numbers["zoom_bin"] == [ROW0 + window.row, COL0 + window.col]


def test_panels_show_the_sums_of_the_files(drawn_run: Path) -> None:
    panels = [image.get_array() for image in images(draw_gene(drawn_run, 0).figure)]
    predicted_8, observed_2 = panels[1], panels[6]
    pooled = block_reduce(CASE.rates[0].astype(float), 4, np.sum)
    known = block_reduce(MASK, 4, np.min, cval=False)
    np.testing.assert_array_equal(~predicted_8.mask, known)
    np.testing.assert_allclose(predicted_8.compressed(), pooled[known], rtol=1e-6)
    np.testing.assert_array_equal(observed_2.compressed(), 16 * CASE.counts[0][MASK])


def test_bins_that_are_not_scored_are_grey(drawn_run: Path) -> None:
    hole = 2 * 115, 2 * 150  # µm, the middle of the hole in the mask
    for image in images(draw_gene(drawn_run, 0).figure)[1:7]:
        left, _, _, top = image.get_extent()
        um = (image.get_extent()[1] - left) / image.get_array().shape[1]
        row, col = int((hole[0] - top) / um), int((hole[1] - left) / um)
        rgba = image.to_rgba(image.get_array())
        np.testing.assert_allclose(rgba[row, col], to_rgba(UNSCORED), atol=1e-6)
        scored = ~image.get_array().mask
        assert not np.isclose(rgba[scored], to_rgba(UNSCORED), atol=1e-3).all(axis=1).any()


def test_metrics_stand_over_their_columns_and_undefined_ones_are_dashes(drawn_run: Path) -> None:
    picture = draw_gene(drawn_run, 0)
    for scale in ("8", "4", "2"):
        at = picture.numbers["scales"][scale]
        expected = (
            f"PCC {at['pcc']:.2f} (ceiling {at['pcc_ceiling']:.2f})\n"
            f"SSIM {at['ssim']:.2f} (shuffled {at['ssim_shuffled']:.2f})"
        )
        assert expected in texts(picture.figure)
    assert "PCC – (ceiling –)\nSSIM 1.00 (shuffled 1.00)" in texts(draw_gene(drawn_run, 5).figure)


def test_the_symbol_is_italic_and_the_patient_beside_it(drawn_run: Path) -> None:
    drawn = draw_gene(drawn_run, 0).figure.findobj(Text)
    titles = {t.get_text(): t.get_fontstyle() for t in drawn}
    assert titles["EPCAM"] == "italic"
    assert titles["patient P5"] == "normal"


def test_the_scale_bar_is_as_long_as_it_says(drawn_run: Path) -> None:
    axes = draw_gene(drawn_run, 0).figure.axes[0]
    assert [t.get_text() for t in axes.texts] == ["200 µm"]
    left, right = axes.lines[0].get_xdata()
    assert right - left == 200
    assert axes.get_xlim() == (0, 2 * MASK.shape[1])  # the axes' unit is the µm


@pytest.mark.parametrize("corner", ["left", "right"])
def test_the_scale_bar_gives_way_to_the_enlarged_square(tmp_path: Path, corner: str) -> None:
    case = FigureRun()
    case.mask[:] = True
    case.counts[:] = 0
    case.counts[0, 300:, : 80 if corner == "left" else None] = 1
    case.counts[0, 300:, 80:300] = 0
    picture = draw_gene(case.write(tmp_path / "run"), 0)
    bar = picture.figure.axes[0].lines[0].get_xdata()
    assert (bar[0] > MASK.shape[1]) == (corner == "left")


# --- patches ---------------------------------------------------------------------------------


def patch_figures_by_others(n: int, gene: int, scale: int) -> dict[str, float]:
    """PCC, ceiling, SSIM and that of zeros of one patch, by SciPy and scikit-image."""
    rate, counts, mask = CASE.patch(n)
    factor = scale // 2
    lam = block_reduce(rate[gene].astype(float), factor, np.sum)
    k = block_reduce(counts[gene].astype(float), factor, np.sum)
    known = block_reduce(mask, factor, np.min)

    def unit(x: np.ndarray) -> np.ndarray:
        low, high = x[known].min(), x[known].max()
        return np.where(known, (x - low) / (high - low), 0)

    whole = np.lib.stride_tricks.sliding_window_view(known, (7, 7)).all(axis=(2, 3))

    def ssim(a: np.ndarray, b: np.ndarray) -> float:
        _, each = structural_similarity(a, b, win_size=7, data_range=1, full=True)
        return float(each[3:-3, 3:-3][whole].mean())

    return {
        "pcc": pearsonr(lam[known], k[known])[0],
        "pcc_ceiling": np.sqrt(max(0.0, 1 - k[known].mean() / k[known].var())),
        "ssim": ssim(unit(lam), unit(k)),
        "ssim_all_zero": ssim(np.zeros_like(k), unit(k)),
    }


def test_patches_are_the_strongest_of_their_genes_with_their_own_figures(drawn_run: Path) -> None:
    with open_maps(drawn_run / "maps" / "P5.h5") as slide:
        wanted = [(slide.genes[g], slide.genes[g].symbol) for g in (2, 5, 0)]
        (page,) = patches_figures(slide, strong_patches(slide, wanted))
    panels = images(page.figure)
    assert len(panels) == 2 * 5  # the gene without UMIs has no patch
    shown = texts(page.figure)
    for row, gene in ((0, 2), (1, 0)):
        umis = [int(CASE.patch(n)[1][gene].sum()) for n in range(len(CASE.lattice))]
        best = int(np.argmax(umis))
        numbers = page.numbers["patches"][row]
        place = [128 * CASE.lattice[best][0] + ROW0, 128 * CASE.lattice[best][1] + COL0]
        assert (numbers["bin"], numbers["umis"]) == (place, umis[best])
        assert f"bin row {place[0]}, column {place[1]}\n{umis[best]:,} UMIs observed" in shown
        maps = panels[5 * row + 1 : 5 * row + 5]
        assert {image.get_clim() for image in maps} == {(0, numbers["colour_limit"])}
        rate, counts, mask = CASE.patch(best)
        for image, values, factor in zip(
            maps, (counts, rate, counts, rate), (1, 1, 4, 4), strict=True
        ):
            expected = density(values[gene], mask, factor)
            np.testing.assert_array_equal(image.get_array().filled(-1), expected.filled(-1))
        for scale in (2, 8):
            expected = patch_figures_by_others(best, gene, scale)
            assert numbers["scales"][str(scale)] == pytest.approx(expected, abs=1e-5)
            assert (
                f"PCC {expected['pcc']:.2f} (ceiling {expected['pcc_ceiling']:.2f})\n"
                f"SSIM {expected['ssim']:.2f} (zeros {expected['ssim_all_zero']:.2f})"
            ) in shown


@pytest.mark.parametrize(("n_genes", "rows"), [(1, [5]), (2, [4]), (7, [5, 2])])
def test_patches_fill_pages(n_genes: int, rows: list[int], tmp_path: Path) -> None:
    means = [0.1] * n_genes
    run = FigureRun(symbols=[f"G{g}" for g in range(n_genes)], means=means).write(tmp_path / "run")
    with open_maps(run / "maps" / "P5.h5") as slide:
        wanted = [(gene, gene.symbol) for gene in slide.genes]
        pages = patches_figures(slide, strong_patches(slide, wanted))
    assert [len(page.numbers["patches"]) for page in pages] == rows
    assert max(rows) <= MOST_ROWS
    assert [len(images(page.figure)) for page in pages] == [5 * n for n in rows]


def test_the_mosaic_shows_each_patch_three_times_in_one_arrangement(drawn_run: Path) -> None:
    with open_maps(drawn_run / "maps" / "P5.h5") as slide:
        rate, counts = slide.layers(slide.genes[1])
        places = strongest(slide.patches, counts, MOST)
        picture = mosaic_figure(slide, rate, counts, "PIGR", places)
    panels = [axes for axes in picture.figure.axes if axes.images]
    assert len(panels) == 3 * len(CASE.lattice)
    umis = [numbers["umis"] for numbers in picture.numbers["patches"]]
    assert umis == sorted(umis, reverse=True)
    for i, (place, numbers) in enumerate(zip(places, picture.numbers["patches"], strict=True)):
        three = panels[3 * i : 3 * i + 3]
        corners = {
            (axes.images[0].get_extent()[0], round(axes.get_position().y0, 9)) for axes in three
        }
        assert len(corners) == 1
        n = list(CASE.lattice).index((place.row // 128, place.col // 128))
        expected = patch_figures_by_others(n, 1, 8)
        assert numbers["pcc"] == pytest.approx(expected["pcc"], abs=1e-6)
        assert numbers["ssim"] == pytest.approx(expected["ssim"], abs=1e-5)
        limits = {axes.images[0].get_clim() for axes in three[1:]}
        assert limits == {(0, picture.numbers["colour_limit"])}


# --- slides ----------------------------------------------------------------------------------


def test_the_overview_counts_patches_tissue_and_blocks(drawn_run: Path) -> None:
    training, test = list(read_overviews(drawn_run))
    numbers = overview_figure(training).numbers
    assert numbers["patches"] == {"training": 4, "validation": 3, "test": 0}
    assert numbers["blocks"] == 0
    numbers = overview_figure(test).numbers
    assert numbers["patches"] == {"training": 0, "validation": 0, "test": 7}
    assert numbers["blocks"] == 7
    assert numbers["tissue_share"] == MASK.sum() / (7 * 128**2)
    assert numbers["bins_off_image"] == 20 * 60
    assert numbers["total_umi"] == CASE.counts.sum()
    expected = 16 * CASE.counts.sum() / MASK.sum()
    assert numbers["umi_per_64_um2"] == pytest.approx(expected)


def test_the_overview_puts_patches_parts_and_depth_in_their_places(drawn_run: Path) -> None:
    slide = next(read_overviews(drawn_run))
    figure = overview_figure(slide).figure
    split, depth = figure.axes[1], figure.axes[2].images[0].get_array()
    # Patches are drawn a part at a time.
    for part in (0, 1):
        squares = split.collections[part]
        assert to_rgba(PART_COLOURS[part])[:3] == tuple(squares.get_facecolor()[0][:3])
        corners = {tuple(path.vertices[0] / 256) for path in squares.get_paths()}
        expected = {(c, r) for i, (r, c) in enumerate(CASE.lattice) if (i % 3 == 0) == (part == 1)}
        assert corners == expected
    assert depth.shape == (3, 3)
    for row, col in CASE.lattice:
        window = Window(128 * row, 128 * col, 128, 128)
        umis = sum(window.cut(layer).sum(dtype=int) for layer in CASE.counts)
        assert depth[row, col] == pytest.approx(16 * umis / window.cut(MASK).sum())
    assert np.ma.is_masked(depth[2, 0])


def test_patches_outside_of_the_arrays_are_refused(drawn_run: Path, tmp_path: Path) -> None:
    run = FigureRun().write(tmp_path / "run")
    for name, where in (("maps/P5.h5", ""), ("overview.h5", "1/")):
        with h5py.File(run / name, "a") as f:
            f[f"{where}patch_row0"][0] = 100_000
    with (
        pytest.raises(ConfigError, match=r"P5.h5: .*expected patches inside of 384 × 384 bins"),
        open_maps(run / "maps" / "P5.h5"),
    ):
        pass
    with pytest.raises(ConfigError, match=r"overview.h5: .*expected patches inside"):
        list(read_overviews(run))

"""Maps before they are drawn, and text that has to fit."""

from __future__ import annotations

import numpy as np
import pytest
from figure_run import SYMBOLS
from scipy.ndimage import gaussian_filter
from skimage.measure import block_reduce

from virchow_st.names import file_names
from virchow_st.output.figures import style
from virchow_st.output.figures.labels import label_points
from virchow_st.output.figures.rasters import (
    Window,
    density,
    shared_limit,
    shrink,
    strongest,
    strongest_window,
    sum_bins,
)
from virchow_st.run.panel import Gene, gene_labels

ROWS, COLS = 300, 382  # neither whole patches nor whole 8 µm bins


@pytest.mark.parametrize("factor", [1, 2, 4, 7])
def test_sums_over_squares_keep_every_umi(factor: int) -> None:
    counts = np.random.default_rng(1).poisson(0.3, (ROWS, COLS)).astype(np.uint16)
    sums = sum_bins(counts, factor)
    np.testing.assert_array_equal(sums, block_reduce(counts.astype(float), factor, np.sum))
    assert sums.sum() == counts.sum(dtype=int)


def test_density_does_not_depend_on_the_scale_and_leaves_out_partly_scored_squares() -> None:
    mask = np.ones((16, 16), bool)
    mask[5, 9] = False
    for factor in (1, 2, 4):
        cells = density(np.full((16, 16), 0.25, np.float32), mask, factor)
        expected = np.zeros(cells.shape, bool)
        expected[5 // factor, 9 // factor] = True
        np.testing.assert_array_equal(cells.mask, expected)
        np.testing.assert_array_equal(cells.compressed(), np.float32(4.0))


def test_one_umi_is_16_in_its_2_um_bin_and_1_in_its_8_um_bin() -> None:
    counts = np.zeros((8, 8), np.uint16)
    counts[3, 6] = 1
    mask = np.ones((8, 8), bool)
    assert density(counts, mask, 1)[3, 6] == 16
    assert density(counts, mask, 4)[0, 1] == 1


def test_a_map_that_ends_inside_a_square_is_not_scored_there() -> None:
    cells = density(np.ones((6, 9)), np.ones((6, 9), bool), 4)
    np.testing.assert_array_equal(cells.mask, [[False, False, True], [True, True, True]])


@pytest.mark.parametrize("shape", [(300, 382), (131, 128), (128, 300)])
def test_the_strongest_window_holds_most_umis(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    field = gaussian_filter(rng.normal(size=shape), 20)
    counts = rng.poisson(np.exp(2 * (field - field.mean()) / field.std()))
    window = strongest_window(counts)
    assert (window.rows, window.cols) == (128, 128)
    assert window.cut(counts).shape == (128, 128)
    assert window.row % 4 == window.col % 4 == 0
    raster = [
        counts[r : r + 128, c : c + 128].sum()
        for r in range(0, shape[0] - 127, 8)
        for c in range(0, shape[1] - 127, 8)
    ]
    assert window.cut(counts).sum() >= 0.98 * max(raster)


def test_a_map_smaller_than_the_window_is_shown_whole() -> None:
    window = strongest_window(np.ones((50, 300), int))
    assert (window.row, window.rows, window.cols) == (0, 50, 128)


def test_the_strongest_patches_come_in_order_and_empty_ones_not_at_all() -> None:
    counts = np.zeros((4, 16), np.uint16)
    counts[0, [1, 5, 13]] = 60_000  # sums of uint16 would wrap
    counts[1, [1, 13]] = 3, 60_000
    places = [Window(0, col, 4, 4) for col in (0, 4, 8, 12)]
    assert [place.col for place in strongest(places, counts, 16)] == [12, 0, 4]
    assert [place.col for place in strongest(places, counts, 2)] == [12, 0]


def test_one_limit_holds_for_all_maps_it_is_for() -> None:
    rng = np.random.default_rng(3)
    mask = np.ones((64, 64), bool)
    rates = [rng.gamma(2, scale, (64, 64)).astype(np.float32) for scale in (0.02, 0.2)]
    counts = rng.poisson(rates[0])
    alone = [shared_limit([(rate, mask)], [(counts, mask)]) for rate in rates]
    together = shared_limit([(rate, mask) for rate in rates], [(counts, mask)])
    pooled = [np.percentile(density(rate, mask, 4).compressed(), 99.5) for rate in rates]
    assert alone[1] == pytest.approx(pooled[1])
    assert alone[0] < together < alone[1]
    assert shared_limit([(0 * rates[0], mask)], [(0 * counts, mask)]) == 1  # nothing to show


def test_images_shrink_by_averaging() -> None:
    image = np.random.default_rng(3).integers(0, 256, (90, 120, 3), np.uint8)
    small = shrink(image, longest=40)
    np.testing.assert_array_equal(
        small, block_reduce(image.astype(float), (3, 3, 1), np.mean).astype(np.uint8)
    )
    np.testing.assert_array_equal(shrink(image, longest=120), image)


def test_text_that_does_not_fit_shrinks_and_then_loses_its_middle() -> None:
    figure = style.new_figure(2)
    short, long, longest = "EPCAM", "HLA-DRB1 (ENSG0001)", "AC0123456789.1-" * 4
    for upright in (False, True):
        shown = []
        for name in (short, long, longest):
            text = style.write(figure, 0.1, 0.1, name, fontsize=8, rotation=90 * upright)
            style.fit(text, 1.0, upright)
            assert style.size_in(text)[int(upright)] <= 1.0
            shown.append((text.get_text(), text.get_fontsize()))
        assert shown[0] == (short, 8)
        assert shown[1][0] == long
        assert style.LEAST_POINTS <= shown[1][1] < 8
        start, end = shown[2][0].split("…")
        assert longest.startswith(start)
        assert longest.endswith(end)
        assert shown[2][1] == style.LEAST_POINTS


def test_names_of_points_cover_neither_points_nor_names() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.random((2, 80))
    figure = style.new_figure(3)
    axes = style.place(figure, 0.5, 0.5, 3, 2)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    names = [f"GENE{i}" for i in range(80)]
    named = label_points(axes, x, y, names, range(80))
    assert 5 < len(named) < 80
    assert [text.get_text() for text in axes.texts] == [names[i] for i in named]
    boxes = [text.get_window_extent() for text in axes.texts]
    points = axes.transData.transform(np.column_stack([x, y]))
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert not any(box.contains(*point) for point in points)
        assert axes.bbox.contains(box.x0, box.y0)
        assert axes.bbox.contains(box.x1, box.y1)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (3e-4, 20, ["0.001", "0.01", "0.1", "1", "10"]),
        (2e-8, 3e3, ["10⁻⁷", "0.0001", "0.1", "100"]),
        (0.3, 30, ["0.3", "1", "3", "10", "30"]),
        (0.4, 2.1, ["0.5", "1", "2"]),
    ],
)
def test_a_logarithmic_axis_has_a_few_ticks(low: float, high: float, expected: list[str]) -> None:
    axes = style.place(style.new_figure(2), 0.5, 0.5, 1, 1)
    axes.set(xscale="log", xlim=(low, high))
    style.log_ticks(axes.xaxis, low, high, style.plain)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == expected


def test_genes_whose_names_look_alike_are_told_apart_by_id() -> None:
    symbols = (*SYMBOLS, "epcam", "x/y", "x y")
    panel = [Gene(f"ENSG{g:04d}", symbol) for g, symbol in enumerate(symbols)]
    called = gene_labels(panel)
    assert called["ENSG0001"] == "PIGR"
    assert called["ENSG0003"] == "SAA2 (ENSG0003)"
    assert called["ENSG0006"] == "epcam"
    files = {file.lower() for file in file_names(list(called.values()))}
    assert len(files) == len(panel)
    assert not any(set(file) & set("/ ()") for file in files)

"""The figures of a run with factors: PCC by abundance, and the factors' maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from factor_run import N_FACTORS, N_GENES, WITHOUT_UMI, Added, add_factors
from figure_run import FigureRun

from virchow_st.kernels.pooling import pool_mask
from virchow_st.output.fields import slide_field
from virchow_st.output.figures import draw
from virchow_st.output.figures.abundance import OTHERS, PREDICTED, abundance_figure
from virchow_st.output.figures.factors import cell_factors_figure, factors_figure
from virchow_st.run.evaluated import RunResults, read_results
from virchow_st.run.maps import open_maps
from virchow_st.run.overview import read_overviews
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.cells.read import read_cells
from virchow_st.slide.geometry import Homography


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FigureRun().write(tmp_path_factory.mktemp("factors") / "run")


@pytest.fixture(scope="module")
def added(run: Path) -> Added:
    return add_factors(run)


@pytest.fixture(scope="module")
def results(run: Path, added: Added) -> RunResults:
    return read_results(run)


def test_they_are_drawn_of_a_run_with_factors_alone(results: RunResults, tmp_path: Path) -> None:
    def names(results: RunResults) -> list[str]:
        with open_maps(results.maps[0]) as slide:
            overviews = list(read_overviews(results.path))
            found = draw.pictures(results, slide.genes[:1], [slide], overviews, None)
            return [name for name, _ in found]

    of_panel = names(read_results(FigureRun().write(tmp_path / "run")))
    assert names(results) == [*of_panel, "abundance", "factors_P5"]


def test_cells_have_the_means_of_their_bins(
    results: RunResults, added: Added, tmp_path: Path
) -> None:
    from cell_files import write_mappings

    with open_maps(results.maps[0]) as slide:
        rows, cols = slide.scored_mask.shape
        labels = np.arange(1, 1 + (rows // 8) * (cols // 8)).reshape(rows // 8, cols // 8)
        labels = labels.repeat(8, 0).repeat(8, 1).astype(np.int32)
        labels[:, 6::8] = 0
        field = slide_field(results.path, slide)
        known = field.tissue_mask & field.covered
        maps = added.maps[slide.name]
        shape = known.shape
        tissue = np.ones(shape, bool)
        lattice = Lattice(
            "P5", Homography(np.diag([4.0, 4.0, 1.0])), slide.row0, slide.col0, tissue
        )
        whole = np.zeros(shape, np.int32)
        whole[: labels.shape[0], : labels.shape[1]] = labels
        cells = read_cells(
            write_mappings(tmp_path / "barcode_mappings.parquet", whole, slide), lattice
        )
        picture = cell_factors_figure(field, cells, slide.heading)
    inside = np.where(known, whole, 0).ravel()
    n_bins = np.bincount(inside, minlength=whole.max() + 1)[1:]
    sums = np.array(
        [np.bincount(inside, np.nan_to_num(m).ravel(), whole.max() + 1)[1:] for m in maps]
    )
    numbers = picture.numbers
    assert numbers["n_cells"] == (n_bins > 0).sum() > 20
    first = numbers["factors"][0]
    k = first["factor"] - 1
    assert k == int(np.argmax(sums.sum(1)))
    assert first["umis_per_2um_bin"] == pytest.approx(sums[k].sum() / n_bins.sum(), rel=1e-3)
    means = sums[k][n_bins > 0] / n_bins[n_bins > 0]
    assert first["limit_per_64um2"] == pytest.approx(16 * np.percentile(means, 99.5), rel=1e-3)
    drawn = picture.figure.axes[0].images[0].get_array()
    at = np.argwhere(whole == int(np.flatnonzero(n_bins == n_bins.max())[0]) + 1)[0]
    side = numbers["scale_um"] // 2
    of = sums[k][whole[tuple(at)] - 1] / n_bins.max()
    assert drawn[tuple(at // side)] == pytest.approx(16 * of, rel=1e-3)


def test_abundance(results: RunResults) -> None:
    rows = results.all_genes
    picture = abundance_figure(rows, [f"G{i}" for i in range(N_GENES)], 0.05, 8)
    at_8 = [row for row in rows if row.scale_um == 8]
    assert picture.numbers["n_tested"] == sum(row.q_value >= 0 for row in at_8)
    assert picture.numbers["n_predicted"] == sum(row.q_value <= 0.05 for row in at_8)
    assert 0 < picture.numbers["n_predicted"] < picture.numbers["n_tested"] < N_GENES
    for axes, scale in zip(picture.figure.axes, (2, 8), strict=True):
        numbers = picture.numbers["scales"][str(scale)]
        assert (numbers["n_drawn"], numbers["n_without_umi"]) == (N_GENES - 1, 1)
        drawn = {
            line.get_color(): line.get_xydata() for line in axes.lines if line.get_marker() == "o"
        }
        assert set(drawn) == {PREDICTED, OTHERS}
        points = np.vstack([drawn[PREDICTED], drawn[OTHERS]])
        of_scale = [row for row in rows if row.scale_um == scale]
        q_value = {row.gene.id: row.q_value for row in at_8}
        expected = sorted(
            (row.mean / (scale / 2) ** 2, row.pcc, q_value[row.gene.id] <= 0.05)
            for g, row in enumerate(of_scale)
            if g != WITHOUT_UMI
        )
        found = points[np.argsort(points[:, 0])]
        np.testing.assert_allclose(found, [row[:2] for row in expected], rtol=1e-5)
        assert len(drawn[PREDICTED]) == sum(row[2] for row in expected)
        for group in numbers["groups"]:
            inside = [
                pcc
                for umis, pcc, _ in expected
                if np.floor(4 * np.log10(umis)) == np.floor(4 * np.log10(group["umis_per_2um_bin"]))
            ]
            assert group["n_genes"] == len(inside) >= 5
            assert group["pcc"] == pytest.approx(np.median(inside), rel=1e-5)
        low, high = axes.get_ylim()
        assert low < points[:, 1].min()
        assert high > max(points[:, 1].max(), *(g["pcc_ceiling"] for g in numbers["groups"]))


def test_factors_are_those_of_the_field_most_umis_first(results: RunResults, added: Added) -> None:
    with open_maps(results.maps[0]) as slide:
        field = slide_field(results.path, slide)
        known = pool_mask(slide.scored_mask & ~np.isnan(added.maps["P5"][0]), 4)
    picture = factors_figure(field, "patient P5")
    maps = added.maps["P5"].astype(np.float64)
    k, rows, cols = maps.shape
    cells = maps.reshape(k, rows // 4, 4, cols // 4, 4).sum((2, 4))
    umis = cells[:, known].mean(1) / 16
    numbers = picture.numbers["factors"]
    assert picture.numbers["scale_um"] == 8
    assert [n["factor"] for n in numbers] == (1 + np.argsort(-umis)).tolist()
    np.testing.assert_allclose(
        [n["umis_per_2um_bin"] for n in numbers], np.sort(umis)[::-1], rtol=1e-3
    )
    assert sum(n["share"] for n in numbers) == pytest.approx(1)
    images = [axes.images[0].get_array() for axes in picture.figure.axes if axes.images][:N_FACTORS]
    for number, image in zip(numbers, images, strict=True):
        at = number["factor"] - 1
        np.testing.assert_array_equal(image.mask, ~known)
        np.testing.assert_allclose(image.compressed(), cells[at][known], rtol=2**-10)
        assert number["limit_per_64um2"] == pytest.approx(
            np.percentile(cells[at][known], 99.5), rel=1e-2
        )
        assert number["leading_genes"] == field.leading_genes[at]


def test_many_factors_fit_on_a_page(results: RunResults, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than 24 the others are left out, and nothing is drawn beyond the figure."""
    monkeypatch.setattr("virchow_st.output.figures.factors.MOST", 4)
    with open_maps(results.maps[0]) as slide:
        picture = factors_figure(slide_field(results.path, slide), "patient P5")
    assert len(picture.numbers["factors"]) == 4
    assert picture.numbers["n_factors"] == N_FACTORS
    width, height = picture.figure.get_size_inches() * picture.figure.dpi
    for text in picture.figure.texts:
        box = text.get_window_extent()
        assert 0 <= box.x0 <= box.x1 <= width
        assert 0 <= box.y0 <= box.y1 <= height

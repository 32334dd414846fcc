"""Cells in figures: their values, where they are drawn, and what is refused."""

import h5py
import numpy as np
import pytest
import shapely
import tifffile
from cell_files import write_geojson
from matplotlib.collections import LineCollection
from tiny_training import few_steps, tiny_config, two_patients

from virchow_st.errors import ConfigError, SlideError
from virchow_st.evaluation.evaluate import evaluate_run
from virchow_st.output.figures import draw
from virchow_st.output.figures.cells import (
    cell_values,
    cells_figure,
    read_run_cells,
    read_slide_cells,
)
from virchow_st.run.maps import open_maps
from virchow_st.training.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    with few_steps(2):
        train(folder / "run", tiny_config(two_patients(folder), panel="top:2", epochs=1))
    evaluate_run(folder / "run", "cpu")
    return folder / "run"


@pytest.fixture(scope="module")
def squares(run):
    """Labels of squares of 5 bins, 7 apart: rows and columns are pixels of this store."""
    with h5py.File(next((run / "maps").glob("*.h5"))) as f:
        shape = f["scored_mask"].shape
    labels = np.zeros(shape, np.uint16)
    number = np.arange(1, 1 + (shape[0] // 7) * (shape[1] // 7)).reshape(shape[0] // 7, -1)
    for i in range(5):
        for j in range(5):
            labels[i::7, j::7][: number.shape[0], : number.shape[1]] = number
    return labels


def test_values_are_sums_over_bins_and_the_ceiling_is_that_of_the_truth():
    rng = np.random.default_rng(201)
    rate = np.repeat(np.repeat(rng.gamma(2.0, 0.1, (40, 40)), 5, 0), 5, 1).astype(np.float32)
    labels = np.repeat(np.repeat(np.arange(1, 1601).reshape(40, 40), 5, 0), 5, 1)
    labels[rng.random(labels.shape) < 0.3] = 0
    mask = rng.random(labels.shape) < 0.9
    mask[labels == 7] = False
    counts = rng.poisson(rate)
    found = cell_values(labels, mask, rate, counts)
    for cell in (1, 800, 1600):
        inside = mask & (labels == cell)
        assert found.observed[cell - 1] == pytest.approx(16 * counts[inside].mean())
        assert found.predicted[cell - 1] == pytest.approx(16 * rate[inside].mean(), rel=1e-6)
    assert np.flatnonzero(np.isnan(found.observed)).tolist() == [6]
    known = np.isfinite(found.observed)
    r = np.corrcoef(found.predicted[known], found.observed[known])[0, 1]
    assert found.pcc == pytest.approx(r)
    assert found.ceiling == pytest.approx(found.pcc, abs=0.03)  # the rates are the true ones
    assert found.ceiling < 0.95


def test_cells_are_drawn_where_they_lie(run, squares, tmp_path):
    tifffile.imwrite(tmp_path / "cells.tif", squares)
    (path,) = (run / "maps").glob("*.h5")
    with open_maps(path) as slide:
        cells = read_slide_cells(tmp_path / "cells.tif", slide)
        rate, counts = slide.layers(slide.genes[0])
        picture = cells_figure(slide, cells, rate, counts, "GENE")
        mask = slide.scored_mask
    expected = cell_values(squares.astype(int), mask, rate, counts)
    panels = [axes for axes in picture.figure.axes if axes.images]
    assert len(panels) == 6
    for axes, values in ((panels[1], expected.predicted), (panels[2], expected.observed)):
        drawn = axes.images[1].get_array()
        assert drawn.shape == squares.shape
        row, col = np.nonzero(squares)
        of_bin = values[squares[row, col] - 1]
        known = np.isfinite(of_bin)
        np.testing.assert_allclose(drawn.data[row, col][known], of_bin[known], rtol=1e-6)
        assert drawn.mask[squares == 0].all()
    numbers = picture.numbers
    assert numbers["n_cells"] == int(np.isfinite(expected.observed).sum())
    assert numbers["pcc"] == pytest.approx(expected.pcc)
    # The lines of the close-up lie on the borders of the squares.
    (lines,) = (of for of in panels[3].collections if isinstance(of, LineCollection))
    ends = np.array(lines.get_segments()) / 2
    row0, col0 = (
        at - first for at, first in zip(numbers["zoom_bin"], (slide.row0, slide.col0), strict=True)
    )
    inner = (ends > [col0, row0]).all((1, 2)) & (ends < [col0 + 128, row0 + 128]).all((1, 2))
    upright = ends[:, 0, 0] == ends[:, 1, 0]
    for which, axis in ((upright, 0), (~upright, 1)):
        assert set(np.unique(ends[inner & which][:, 0, axis] % 7)) == {0.0, 5.0}


def test_they_come_as_files_of_the_run_or_not_at_all(run, squares, tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "cells.tif", squares)
    (path,) = (run / "maps").glob("*.h5")
    with open_maps(path) as slide:
        cells = read_run_cells(tmp_path / "cells.tif", [slide])
        for name in ("multiscale_figure", "mosaic_figure", "patches_figures"):
            monkeypatch.setattr(draw, name, lambda *_: [])
        results = draw.read_results(run)
        names = []
        for name, _ in draw.pictures(results, slide.genes[:1], [slide], [], None, cells):
            names.append(name)
            if name.startswith("cells"):
                break
        assert names[-1] == f"cells_P5_{results.labels[slide.genes[0].id]}"
        with pytest.raises(ConfigError, match=r"one test slide .* the run has 2; leave out"):
            read_run_cells(tmp_path / "cells.tif", [slide, slide])


def test_cells_of_another_slide_are_refused(run, tmp_path):
    path = write_geojson(tmp_path / "c.geojson", np.array([shapely.box(5000, 5000, 5010, 5010)]))
    with pytest.raises(SlideError, match=r"c.geojson: expected cells on the tissue of P5"):
        draw.draw_figures(run, cells=path)
    assert not (run / "figures").exists()


def test_maps_of_an_older_version_are_refused(drawn_run, tmp_path):
    with pytest.raises(ConfigError, match="no attribute store: an older version wrote it"):
        draw.draw_figures(drawn_run, cells=tmp_path / "cells.tif")

"""Which bins belong to an outline, as a brute-force test of shapes has them; and how cells grow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from cell_files import (
    HOMOGRAPHIES,
    brute_labels,
    make_lattice,
    named_labels,
    star_cells,
    to_px,
    write_geojson,
    write_mappings,
)

from virchow_st.slide.cells.read import read_cells


@pytest.mark.parametrize("name", HOMOGRAPHIES)
def test_bins_are_those_whose_centre_lies_in_the_outline(tmp_path: Path, name: str) -> None:
    lattice = make_lattice(name)
    shapes = star_cells(lattice)
    path = write_geojson(tmp_path / "cells.geojson", to_px(lattice, shapes))
    cells = read_cells(path, lattice)
    expected = brute_labels(lattice, shapes)
    np.testing.assert_array_equal(named_labels(cells), expected)
    hits = sum(
        shapely.contains_xy(shape, *np.indices(lattice.shape)[::-1]).astype(int) for shape in shapes
    )
    assert cells.n_shared == (hits > 1).sum() > 0
    assert len(cells) + cells.n_elsewhere == len(shapes)
    np.testing.assert_array_equal(cells.n_bins, np.bincount(cells.labels.ravel())[1:])
    kept = shapes[[int(i[1:]) for i in cells.ids]]
    np.testing.assert_allclose(cells.area_um2, 4 * shapely.area(kept), rtol=1e-6)
    middles = shapely.get_coordinates(shapely.centroid(kept))
    np.testing.assert_allclose(cells.centroids, middles, atol=1e-6)
    um = shapely.get_coordinates(shapely.centroid(cells.polygons_um()))
    np.testing.assert_allclose(um, 2 * (middles + 0.5 + [16, 8]), atol=1e-5)


@pytest.mark.parametrize("name", ["mirrored", "turned"])
def test_shares_are_the_covered_areas(tmp_path: Path, name: str) -> None:
    lattice = make_lattice(name, (48, 60))
    shapes = star_cells(lattice, 14, seed=3)
    shapes[0] = shapes[0].difference(shapely.centroid(shapes[0]).buffer(1.0))  # a hole
    path = write_geojson(tmp_path / "cells.geojson", to_px(lattice, shapes))
    cells = read_cells(path, lattice, weights="area")
    row, col = np.indices(lattice.shape)
    boxes = shapely.box(col - 0.5, row - 0.5, col + 0.5, row + 0.5)
    expected = np.array([shapely.area(shapely.intersection(boxes, shape)) for shape in shapes])
    total = expected.sum(axis=0)
    assert cells.n_shared == (total > 1 + 1e-6).sum() > 0
    expected /= np.maximum(total, 1)
    found = cells.matrix().toarray().reshape(len(cells), *lattice.shape)
    numbers = [int(name[1:]) for name in cells.ids]
    np.testing.assert_allclose(found, expected[numbers], atol=2e-6)
    by_bin = np.bincount(cells.bins, cells.share)
    assert by_bin.max() <= 1 + 1e-6


def test_a_common_edge_through_centres_gives_each_bin_once(tmp_path: Path) -> None:
    lattice = make_lattice("plain")
    boxes = np.array([shapely.box(20, 20, 30, 40), shapely.box(30, 20, 41, 40)])
    path = write_geojson(tmp_path / "cells.geojson", to_px(lattice, boxes))
    cells = read_cells(path, lattice)
    assert cells.n_shared == 0
    np.testing.assert_array_equal(cells.n_bins, [200, 220])


def test_a_region_as_large_as_the_lattice_and_beyond(tmp_path: Path) -> None:
    lattice = make_lattice("plain")
    whole = np.array([shapely.box(-50, -30, 200, 150).difference(shapely.box(40, 40, 60, 60))])
    path = write_geojson(tmp_path / "r.geojson", to_px(lattice, whole))
    for weights in ("centre", "area"):
        cells = read_cells(path, lattice, want="regions", weights=weights)
        assert cells.n_bins[0] == pytest.approx(96 * 120 - 400)


def test_nuclei_grow_without_overlap(tmp_path: Path) -> None:
    lattice = make_lattice()
    labels = np.zeros(lattice.shape, int)
    labels[40, 40], labels[40, 46], labels[80, 80] = 1, 2, 3
    path = write_mappings(tmp_path / "m.parquet", labels, lattice)
    cells = read_cells(path, lattice, expand_um=8)
    row, col = np.indices(lattice.shape)
    squared = np.array([(row - r) ** 2 + (col - c) ** 2 for r, c in ((40, 40), (40, 46), (80, 80))])
    expected = np.where(squared.min(axis=0) <= 16, squared.argmin(axis=0) + 1, 0)
    np.testing.assert_array_equal(cells.labels, expected)
    assert (cells.labels[36:45, 43] == 1).any()  # as near to both: the first

"""Polygons of QuPath, TRIDENT and others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from cell_files import (
    brute_labels,
    geometry,
    make_lattice,
    named_labels,
    star_cells,
    to_px,
    write_geojson,
)

from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.cells.read import read_cells


def qupath(lattice: Lattice, shapes: np.ndarray) -> list[dict[str, Any]]:
    """An annotation in which cells nest, and all that QuPath writes besides."""
    px = to_px(lattice, shapes)
    cells = [
        {
            "type": "Feature",
            "id": f"c{i}",
            "geometry": geometry(shape),
            "nucleusGeometry": geometry(shape.buffer(-4)),
            "properties": {
                "objectType": "cell",
                "classification": [
                    None,
                    "Stroma",
                    {"name": "Tumor", "color": [200, 0, 0]},
                    {"names": ["Tumor", "Ki67+"]},
                ][i % 4],
            },
        }
        for i, shape in enumerate(px)
    ]
    outer = shapely.box(0, 0, lattice.shape[1], lattice.shape[0])
    region = {
        "type": "Feature",
        "id": "PathAnnotationObject",
        "geometry": geometry(to_px(lattice, np.array([outer]))[0]),
        "properties": {
            "objectType": "annotation",
            "classification": {"name": "Region*"},
            "isLocked": True,
            "childObjects": cells,
        },
    }
    line = {"type": "LineString", "coordinates": [[0, 0], [5, 5]]}
    odd = [
        {"type": "GeometryCollection", "geometries": [line]},
        line,
        {"type": "Point", "coordinates": [1, 2]},
        None,
    ]
    others = [{"type": "Feature", "geometry": g, "properties": {}} for g in odd]
    return [region, *others]


def test_qupaths_cells_nuclei_and_regions(tmp_path: Path) -> None:
    lattice = make_lattice()
    shapes = star_cells(lattice, 20, reach=6)
    features = qupath(lattice, shapes)
    bare, whole = tmp_path / "bare.json", tmp_path / "whole.geojson"
    bare.write_text(json.dumps(features, indent=1))
    whole.write_text("\ufeff" + json.dumps({"features": features, "type": "FeatureCollection"}))
    expected = brute_labels(lattice, shapes)
    for path in bare, whole:
        cells = read_cells(path, lattice)
        np.testing.assert_array_equal(named_labels(cells), expected)
        assert cells.classes[:4] == ("", "Stroma", "Tumor", "Tumor: Ki67+")
        assert cells.notes == {
            "annotation": 1,
            "of type GeometryCollection": 1,
            "of type LineString": 1,
            "of type Point": 1,
            "without an outline": 1,
        }
    nuclei = read_cells(bare, lattice, want="nuclei")
    smaller = np.array([shape.buffer(-4) for shape in to_px(lattice, shapes)])
    np.testing.assert_array_equal(
        named_labels(nuclei), brute_labels(lattice, shapely.transform(smaller, lattice.to_bins))
    )
    (region,) = read_cells(bare, lattice, want="regions").classes
    assert region == "Region*"


def test_trident_contours_and_a_single_geometry(tmp_path: Path) -> None:
    lattice = make_lattice()
    (star,) = to_px(lattice, star_cells(lattice, 1, reach=20))
    path = write_geojson(tmp_path / "t.geojson", np.array([star]), tissue_id=7)
    assert read_cells(path, lattice, want="regions").ids == ("7",)
    path.write_text(json.dumps(geometry(star)))
    assert read_cells(path, lattice).ids == ("1",)


def test_an_outline_that_only_touches_itself_is_repaired(tmp_path: Path) -> None:
    lattice = make_lattice("plain")
    touching = shapely.Polygon([(10, 10), (30, 10), (20, 20), (30, 30), (10, 30), (20, 20)])
    crossing = shapely.Polygon([(40, 40), (60, 60), (60, 40), (40, 58)])
    box = shapely.box(70, 40, 80, 50)
    assert not touching.is_valid
    shapes = to_px(lattice, np.array([touching, crossing, box]))
    cells = read_cells(write_geojson(tmp_path / "c.geojson", shapes), lattice)
    assert cells.ids == ("c0", "c2")
    assert cells.notes == {
        "outlines that cross themselves or are empty": 1,
        "outlines that touched themselves, repaired": 1,
    }
    assert cells.area_um2[0] == pytest.approx(4 * touching.area)

"""Cells of every format come out on the lattice as a brute-force test of shapes has them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
import zarr
from cell_files import (
    HOMOGRAPHIES,
    geometry,
    make_lattice,
    star_cells,
    to_px,
    write_geojson,
    write_mappings,
)

from virchow_st.errors import ConfigError, SlideError
from virchow_st.slide.cells.cell_map import CellMap
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.cells.read import read_cells


def brute_labels(lattice: Lattice, shapes: np.ndarray) -> np.ndarray:
    """The smallest shape that holds each bin's centre, by shapely; tested in px, not in bins."""
    row, col = np.indices(lattice.shape)
    x, y = lattice.to_px(np.stack([col.ravel(), row.ravel()], 1).astype(float)).T
    labels = np.zeros(row.size, np.int32)
    for i in np.argsort([-s.area for s in shapes], kind="stable"):
        labels[shapely.contains_xy(to_px(lattice, shapes[i : i + 1])[0], x, y)] = i + 1
    return labels.reshape(lattice.shape)


def named_labels(cells: CellMap) -> np.ndarray:
    """Labels by the number in the cell's name, from 1."""
    numbers = np.array([0, *(int(name.strip("c")) + 1 for name in cells.ids)])
    return numbers[cells.labels]


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


# --- Space Ranger ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["{}", "cellid_{:09d}-1", "cellid_{:09d}"])
def test_space_rangers_table_is_taken_as_it_is(tmp_path: Path, spelling: str) -> None:
    lattice = make_lattice()
    labels = brute_labels(lattice, star_cells(lattice, 40))
    nuclei = (labels > 0) & (np.random.default_rng(1).random(labels.shape) < 0.5)
    outs = tmp_path / "outs"
    write_mappings(outs / "X_barcode_mappings.parquet", labels, lattice, nuclei, spelling)
    (outs / "segmented_outputs").mkdir()
    for place in (outs, tmp_path, outs / "segmented_outputs", outs / "X_barcode_mappings.parquet"):
        cells = read_cells(place, lattice)
        assert cells.ids == tuple(f"cellid_{i:09d}-1" for i in np.unique(labels)[1:])
        assert cells.outlines is None
        numbers = np.append(0, np.unique(labels)[1:])
        np.testing.assert_array_equal(numbers[cells.labels], labels)
    inner = read_cells(outs, lattice, want="nuclei")
    np.testing.assert_array_equal(inner.labels > 0, nuclei)


def test_outlines_of_bins_hold_these_bins(tmp_path: Path) -> None:
    lattice = make_lattice()
    labels = brute_labels(lattice, star_cells(lattice, 40))
    cells = read_cells(write_mappings(tmp_path / "m.parquet", labels, lattice), lattice)
    shapes = shapely.transform(cells.polygons_um(), lambda xy: xy / 2 - 0.5 - [16, 8])
    np.testing.assert_array_equal(shapely.area(shapes), cells.n_bins)
    # And their outlines in px, rounded as Space Ranger rounds them, give the bins back.
    px = shapely.transform(to_px(lattice, shapes), lambda xy: np.round(xy, 1))
    path = write_geojson(tmp_path / "cell_segmentations.geojson", px)
    again = read_cells(path, lattice)
    np.testing.assert_array_equal(again.labels, cells.labels)


def test_a_slide_without_segmentation_is_refused(tmp_path: Path) -> None:
    lattice = make_lattice()
    path = write_mappings(tmp_path / "m.parquet", np.zeros(lattice.shape, int), lattice)
    with pytest.raises(SlideError, match="cell_id names none; run Space Ranger 4 with segm"):
        read_cells(path, lattice)
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(path).select(["square_002um"]), path)
    with pytest.raises(SlideError, match="cell_id missing: this slide was not segmented"):
        read_cells(path, lattice)
    with pytest.raises(SlideError, match="found neither; run Space Ranger 4"):
        read_cells(tmp_path / "nothing", _made(tmp_path / "nothing", lattice))


def _made(folder: Path, lattice: Lattice) -> Lattice:
    (folder / "inside").mkdir(parents=True)
    return lattice


# --- GeoJSON --------------------------------------------------------------------------------------


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


# --- label images ---------------------------------------------------------------------------------


def label_picture(lattice: Lattice, labels: np.ndarray, scale: float) -> np.ndarray:
    """The labels as pixels of an image whose pixels are ``1 / scale`` full-resolution ones."""
    height, width = (round(scale * n) for n in (1200, 2400))
    y, x = np.indices((height, width))
    px = np.stack([x.ravel() + 0.5, y.ravel() + 0.5], 1) / scale
    col, row = np.rint(lattice.to_bins(px)).astype(int).T
    inside = (row >= 0) & (row < labels.shape[0]) & (col >= 0) & (col < labels.shape[1])
    image = np.zeros(height * width, np.uint32)
    image[inside] = labels[row[inside], col[inside]]
    return image.reshape(height, width)


@pytest.mark.parametrize("name", ["mirrored", "turned"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_label_images_in_every_form(tmp_path: Path, name: str, scale: float) -> None:
    lattice = make_lattice(name)
    labels = 3 * brute_labels(lattice, star_cells(lattice, 30))
    image = label_picture(lattice, labels, scale)
    mpp = 0.0 if scale == 1 else lattice.mpp / scale
    plain, tiled, ome = (tmp_path / f"{n}.tif" for n in ("plain", "tiled", "x.ome"))
    tifffile.imwrite(plain, image)
    tifffile.imwrite(tiled, image[None], tile=(256, 256), compression="zlib")
    size = {"PhysicalSizeX": lattice.mpp / scale, "PhysicalSizeY": lattice.mpp / scale}
    tifffile.imwrite(ome, image, metadata={"axes": "YX", **size}, compression="lzw")
    zarr.save(str(tmp_path / "l.zarr"), image)
    sources = {plain: mpp, tiled: mpp, ome: 0.0, tmp_path / "l.zarr": mpp}
    for path, given in sources.items():
        cells = read_cells(path, lattice, mpp=given)
        numbers = np.array([0, *map(int, cells.ids)])
        np.testing.assert_array_equal(numbers[cells.labels], labels)


def test_label_images_that_do_not_fit(tmp_path: Path) -> None:
    lattice = make_lattice()
    image = label_picture(lattice, brute_labels(lattice, star_cells(lattice, 30)), 0.25)
    path = tmp_path / "l.tif"
    tifffile.imwrite(path, image)
    with pytest.raises(SlideError, match=r"600 × 300 px hold \d+%; give its µm per pixel"):
        read_cells(path, lattice)
    sized = Lattice("S", lattice.homography, 8, 16, lattice.tissue, (2400, 1200))
    np.testing.assert_array_equal(  # its size says what it is
        read_cells(path, sized).labels, read_cells(path, lattice, mpp=lattice.mpp * 4).labels
    )
    with pytest.raises(SlideError, match="expected 1200 × 600 px by .* as given; found 600 × 300"):
        read_cells(path, sized, mpp=lattice.mpp * 2)
    tifffile.imwrite(path, np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(SlideError, match="one whole number per pixel; found uint8"):
        read_cells(path, lattice)
    tifffile.imwrite(path, np.zeros((1200, 2400), np.uint8))
    with pytest.raises(SlideError, match="labels above 0 on S; found none"):
        read_cells(path, lattice)


# --- SpatialData ----------------------------------------------------------------------------------


WRITES_SHAPES = """
import sys, geopandas, shapely
from spatialdata import SpatialData
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity, Scale

shapes = list(shapely.from_geojson(open(sys.argv[1]).read()).geoms)
names = [f"c{i}" for i in range(len(shapes))]
frame = geopandas.GeoDataFrame({"class": "T"}, geometry=shapes, index=names)
frames = {"s_downscaled_hires": Identity(), "s": Scale([2.0, 2.0], ("x", "y"))}
element = ShapesModel.parse(frame, transformations=frames)
SpatialData(shapes={"cells": element}).write(sys.argv[2] + "/s.zarr")
SpatialData(shapes={"a": element, "b": element}).write(sys.argv[2] + "/two.zarr")
"""


def test_shapes_of_a_spatialdata_folder(tmp_path: Path) -> None:
    pytest.importorskip("spatialdata")
    lattice = make_lattice()
    shapes = star_cells(lattice, 30)
    half = shapely.transform(to_px(lattice, shapes), lambda xy: xy / 2)
    geojson = tmp_path / "half.json"
    geojson.write_text(shapely.to_geojson(shapely.GeometryCollection(list(half))))
    script = [sys.executable, "-W", "ignore", "-c", WRITES_SHAPES, str(geojson), str(tmp_path)]
    subprocess.run(script, check=True)
    for place in tmp_path / "s.zarr", tmp_path / "s.zarr" / "shapes" / "cells":
        cells = read_cells(place, lattice)
        np.testing.assert_array_equal(named_labels(cells), brute_labels(lattice, shapes))
        assert set(cells.classes) == {"T"}
    with pytest.raises(SlideError, match="found shapes/a, shapes/b; give one of them"):
        read_cells(tmp_path / "two.zarr", lattice)
    with pytest.raises(ConfigError, match="holds one kind of outline; leave out --nuclei"):
        read_cells(tmp_path / "s.zarr", lattice, want="nuclei")


# --- growing --------------------------------------------------------------------------------------


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


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("  \n", "the file is empty"),
        ("[", "the file is cut off"),
        ('{"type": "FeatureCollection", "features": [', "the file is cut off"),
        ('{"type": "FeatureCollection", "features": []}', "expected polygons; found nothing"),
        ('{"a": 1}', "neither features nor a type"),
        ("[1, 2]", "expected GeoJSON features; found '1'"),
        ("x,y", "found 'x,y'"),
        ('[{"geometry": {"type": "Point", "coordinates": [1, 2]}}]', "found 1 of type Point"),
        (
            '[{"geometry": {"type": "Polygon", "coordinates": [[[1, 2], [NaN, 3], [4, 9]]]}}]',
            "expected numbers; found NaN",
        ),
        (
            '[{"geometry": {"type": "Polygon", "coordinates": [[[1, 2], [1e999, 3], [4, 9]]]}}]',
            "1: expected rings .* NaN or infinite",
        ),
        (
            '[{"geometry": {"type": "Polygon", "coordinates": [[[1, 2], [3, 4]]]}}]',
            "1: expected rings of at least three vertices",
        ),
        ('[{"geometry": {"type": "Polygon", "coordinates": null}}]', "1: expected rings"),
        (
            '[{"geometry": {"type": "Polygon", "coordinates": [[[1, 2], [2e8, 4], [4, 9]]]}}]',
            "1: expected coordinates below 1e7 px",
        ),
    ],
)
def test_files_that_are_no_cells(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.geojson"
    path.write_text(text)
    with pytest.raises(SlideError, match=message) as raised:
        read_cells(path, make_lattice())
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_a_binary_file_and_a_deep_one(tmp_path: Path) -> None:
    path = tmp_path / "c.geojson"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SlideError, match="expected GeoJSON; it cannot be read"):
        read_cells(path, make_lattice())
    path.write_text("[" * 100_000)
    with pytest.raises(SlideError, match="expected GeoJSON"):
        read_cells(path, make_lattice())


def test_names_that_repeat_are_refused(tmp_path: Path) -> None:
    lattice = make_lattice()
    shapes = to_px(lattice, star_cells(lattice, 5))
    path = write_geojson(tmp_path / "c.geojson", shapes, cell_id=lambda i: i // 2)
    with pytest.raises(SlideError, match="expected every name once; 2 occur more often, such as"):
        read_cells(path, lattice)


def test_cells_of_another_slide_or_in_micrometres(tmp_path: Path) -> None:
    lattice = make_lattice()
    shapes = to_px(lattice, star_cells(lattice))
    other = write_geojson(
        tmp_path / "other.geojson", shapely.transform(shapes, lambda xy: xy + 900)
    )
    with pytest.raises(SlideError, match=r"expected cells on the tissue of S; \d+ of \d+ lie off"):
        read_cells(other, lattice)
    um = shapely.transform(shapes, lambda xy: xy * lattice.mpp)
    with pytest.raises(SlideError, match="100% if they are in µm; divide the coordinates by 0.27"):
        read_cells(write_geojson(tmp_path / "um.geojson", um), lattice)


def test_sources_and_options_that_do_not_fit(tmp_path: Path) -> None:
    lattice = make_lattice()
    path = write_geojson(tmp_path / "c.geojson", to_px(lattice, star_cells(lattice)))
    mappings = write_mappings(
        tmp_path / "m.parquet", brute_labels(lattice, star_cells(lattice)), lattice
    )
    with pytest.raises(SlideError, match="not found; give Space Ranger's outs"):
        read_cells(tmp_path / "none.geojson", lattice)
    (tmp_path / "c.csv").write_text("a,b")
    with pytest.raises(SlideError, match=r"found a file \.csv; give"):
        read_cells(tmp_path / "c.csv", lattice)
    with pytest.raises(ConfigError, match="cells grow by whole bins"):
        read_cells(path, lattice, weights="area", expand_um=4)
    with pytest.raises(ConfigError, match="weights: area needs outlines"):
        read_cells(mappings, lattice, weights="area")
    with pytest.raises(ConfigError, match="is no label image"):
        read_cells(path, lattice, mpp=0.5)

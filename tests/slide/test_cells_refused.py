"""Cells that are refused in one line: damaged, of another slide, or in another unit."""

from __future__ import annotations

from pathlib import Path

import pytest
import shapely
from cell_files import (
    brute_labels,
    make_lattice,
    star_cells,
    to_px,
    write_geojson,
    write_mappings,
)

from virchow_st.errors import ConfigError, SlideError
from virchow_st.slide.cells.read import read_cells


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

"""``vst cells --out NAME.geojson``: what QuPath is given reads back as the same cells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely.affinity
from cell_files import make_lattice, star_cells, to_px, write_geojson, write_mappings
from cli_place import Answer
from tiny_field import TinyField
from tiny_store import write_store

from virchow_st import CellsConfig, cell_table, write_cells
from virchow_st.field.write import write_field
from virchow_st.slide.cells.geojson import read_geojson
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.cells.read import read_cells
from virchow_st.slide.geometry import Homography

CLASSES = [{"name": "Tumor"}, {"names": ["Tumor", "Ki67+"]}, None]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lattice]:
    """A field on a mirrored and tilted slide, and its lattice."""
    tiny = TinyField()
    tiny.tissue = np.ones(tiny.shape, bool)
    frame = make_lattice("mirrored").homography
    lattice = Lattice("S", frame, 8, 20, tiny.tissue)
    path = tmp_path_factory.mktemp("field") / "f.zarr"
    about = {"homography": frame.matrix.tolist(), "slide": "S", "patient": "P9"}
    write_field(
        path, tiny.blocks(), tiny.loadings, tiny.tissue, about, picture=(tiny.picture, 1.0),
        corner_um=(40.0, 16.0), um_to_px=None,
    )  # fmt: skip
    return path, lattice


def drawn_cells(lattice: Lattice, path: Path) -> Path:
    """Stars of which some overlap, some with a hole, and one in two parts."""
    stars = star_cells(lattice, n=600, seed=7)
    for i in range(0, len(stars), 4):
        stars[i] = stars[i].difference(stars[i].centroid.buffer(0.8))
    stars[1] = shapely.MultiPolygon([stars[1], shapely.affinity.translate(stars[1], 14, 0)])
    return write_geojson(path, to_px(lattice, stars), classification=lambda i: CLASSES[i % 3])


@pytest.mark.parametrize("given", ["drawn", "bins"])
@pytest.mark.parametrize("expand_um", [0.0, 5.0])
def test_it_reads_back_as_the_same_cells(
    place: tuple[Path, Lattice], given: str, expand_um: float, tmp_path: Path
) -> None:
    field, lattice = place
    if given == "drawn":
        source = drawn_cells(lattice, tmp_path / "drawn.geojson")
    else:
        labels = np.zeros(lattice.shape, int)  # cells in many parts that touch at corners
        labels[40:60, 50:80] = np.random.default_rng(4).integers(0, 9, (20, 30))
        source = write_mappings(tmp_path / "barcode_mappings.parquet", labels, lattice)
    out, _ = write_cells(field, source, tmp_path / "q.geojson", CellsConfig(expand_um=expand_um))
    first = read_cells(source, lattice, expand_um=expand_um)
    again = read_cells(out, lattice)
    assert again.ids == first.ids
    assert again.classes == first.classes
    np.testing.assert_array_equal(again.bins, first.bins)
    np.testing.assert_array_equal(again.cell, first.cell)
    if given == "drawn":
        assert set(first.classes) == {"Tumor", "Tumor: Ki67+", ""}
        assert first.n_shared > 0
    np.testing.assert_allclose(
        cell_table(field, out).X,
        cell_table(field, source, CellsConfig(expand_um=expand_um)).X,
        rtol=1e-6,
    )


def test_shares_of_bins_survive(place: tuple[Path, Lattice], tmp_path: Path) -> None:
    field, lattice = place
    source = drawn_cells(lattice, tmp_path / "drawn.geojson")
    out, _ = write_cells(field, source, tmp_path / "q.geojson", CellsConfig(weights="area"))
    first, again = (read_cells(of, lattice, weights="area") for of in (source, out))
    assert abs(again.matrix() - first.matrix()).max() < 1e-3
    given, written = read_geojson(source), read_geojson(out)
    assert written.ids == given.ids
    assert shapely.hausdorff_distance(written.polygons, given.polygons).max() < 2e-6


def features(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text())
    assert content["type"] == "FeatureCollection"
    assert len(shapely.get_parts(shapely.from_geojson(path.read_text()))) == len(
        content["features"]
    )
    return content["features"]


def test_measurements_are_those_of_the_table(
    place: tuple[Path, Lattice], tmp_path: Path, vst: Callable[..., Answer]
) -> None:
    field, lattice = place
    source = drawn_cells(lattice, tmp_path / "drawn.geojson")
    out = tmp_path / "q.geojson"
    answer = vst("cells", field, "--cells", source, "--out", out, "--genes", "GENE4,GENE2")
    assert answer.code == 0, answer
    table = cell_table(field, source, CellsConfig(genes="GENE4,GENE2"))
    assert f"outlines of {table.n_obs} cells with 5 measurements" in answer.out
    found = features(out)
    assert [f["id"] for f in found] == [f["properties"]["name"] for f in found]
    assert [f["id"] for f in found] == list(table.obs_names)
    assert {f["properties"]["objectType"] for f in found} == {"cell"}
    assert found[1]["properties"]["classification"] == CLASSES[1]
    assert "classification" not in found[2]["properties"]
    expected = {
        "Expected UMIs of 2 genes": table.obs["expected_umis"],
        "Area µm^2": table.obs["area_um2"],
        "Covered share": table.obs["covered"],
        "GENE4: expected UMIs": table.X[:, 0],
        "GENE2: expected UMIs": table.X[:, 1],
    }
    for name, values in expected.items():
        written = [f["properties"]["measurements"][name] for f in found]
        np.testing.assert_allclose(written, values, rtol=1e-6, err_msg=name)
    assert list(found[0]["properties"]["measurements"]) == list(expected)
    about = json.loads(out.read_text())["virchow_st"]
    assert (about["cells"], about["n_cells"]) == ("drawn.geojson", table.n_obs)


def test_counts_of_a_store(tmp_path: Path) -> None:
    write_store(tmp_path / "A.vst", n_patches=3, seed=5, slide="A")
    labels = np.zeros((256, 256), int)
    labels[:128] = np.arange(1, 65).reshape(4, 16).repeat(32, 0).repeat(16, 1)
    frame = Lattice("A", Homography(np.eye(3)), 0, 0, labels >= 0)
    source = write_mappings(tmp_path / "barcode_mappings.parquet", labels, frame)
    table = cell_table(tmp_path / "A.vst", source)
    whole, _ = write_cells(tmp_path / "A.vst", source, tmp_path / "q.geojson")
    some, _ = write_cells(
        tmp_path / "A.vst", source, tmp_path / "g.geojson", CellsConfig(genes="GENE3")
    )
    totals = [f["properties"]["measurements"] for f in features(whole)]
    assert list(totals[0]) == ["Observed UMIs", "Area µm^2", "Covered share"]
    np.testing.assert_array_equal([m["Observed UMIs"] for m in totals], table.obs["umis"])
    genes = [f["properties"]["measurements"]["GENE3: observed UMIs"] for f in features(some)]
    np.testing.assert_array_equal(genes, table[:, "GENE3"].X.toarray()[:, 0])
    assert sum(genes) > 100


def test_nuclei_are_detections(place: tuple[Path, Lattice], tmp_path: Path) -> None:
    field, lattice = place
    source = drawn_cells(lattice, tmp_path / "c.geojson")
    content = json.loads(source.read_text())
    for feature in content["features"]:
        feature["properties"]["objectType"] = "cell"
        feature["nucleusGeometry"] = feature["geometry"]
    source.write_text(json.dumps(content))
    out, _ = write_cells(field, source, tmp_path / "q.geojson", CellsConfig(nuclei=True))
    assert {f["properties"]["objectType"] for f in features(out)} == {"detection"}
    assert read_cells(out, lattice).ids == read_cells(source, lattice).ids


def test_too_many_genes_are_refused_and_stopping_leaves_nothing(
    place: tuple[Path, Lattice], tmp_path: Path, vst: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from virchow_st.output.cells import qupath

    field, lattice = place
    source = drawn_cells(lattice, tmp_path / "c.geojson")
    out = tmp_path / "q.geojson"
    many = ",".join(f"GENE{i}" for i in range(101))
    answer = vst("cells", field, "--cells", source, "--out", out, "--genes", many)
    assert answer.code == 2
    assert "genes: expected at most 100 for a .geojson" in answer.err
    assert answer.err.strip().count("\n") == 0

    def stop(label: str) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(qupath, "_classification", stop)
    answer = vst("cells", field, "--cells", source, "--out", out)
    assert answer.code == 130
    assert [p.name for p in tmp_path.iterdir()] == ["c.geojson"]

"""``vst cells``: sums over cells equal those of dense arrays, and its files open elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import shapely
from cell_files import write_geojson, write_mappings
from cli_place import Answer
from tiny_field import TinyField
from tiny_store import write_store

from virchow_st import CellsConfig, cell_rates, cell_table, open_field, write_cells
from virchow_st.errors import ConfigError
from virchow_st.field.write import write_field
from virchow_st.output.cells import table as table_module
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.geometry import Homography

MIRRORED = np.array([[3.4, 1.2, 30.0], [1.2, -3.4, 990.0], [1e-7, 2e-7, 1]])  # and turned
CORNER = 8, 20  # array_row and array_col of the tiny field's first bin


def make_field(tiny: TinyField, path: Path, provenance: dict[str, Any]) -> Path:
    frame = {"corner_um": (2.0 * CORNER[1], 2.0 * CORNER[0]), "um_to_px": None}
    if "image" in provenance:
        mpp = provenance["image"]["mpp"]
        frame = {"um_to_px": np.array([[1 / mpp, 0, 0], [0, 1 / mpp, 0]])}
    write_field(
        path, tiny.blocks(), tiny.loadings, tiny.tissue, provenance, picture=(tiny.picture, 1.0),
        **frame,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def tiny() -> TinyField:
    made = TinyField()
    made.tissue = np.ones(made.shape, bool)
    return made


@pytest.fixture(scope="module")
def lattice(tiny: TinyField) -> Lattice:
    return Lattice("S", Homography(MIRRORED), *CORNER, tiny.tissue)


@pytest.fixture(scope="module")
def field(tiny: TinyField, tmp_path_factory: pytest.TempPathFactory) -> Path:
    about = {"homography": MIRRORED.tolist(), "slide": "S", "patient": "P9"}
    return make_field(tiny, tmp_path_factory.mktemp("field") / "f.zarr", about)


def draw_labels(shape: tuple[int, int], n: int = 50, seed: int = 0) -> np.ndarray:
    """Discs of 1 to n, some cut by others."""
    rng = np.random.default_rng(seed)
    row, col = np.indices(shape)
    labels = np.zeros(shape, int)
    for i, (r, c) in enumerate(rng.uniform((5, 5), (shape[0] - 5, shape[1] - 5), (n, 2))):
        labels[(row - r) ** 2 + (col - c) ** 2 < rng.uniform(4, 30)] = i + 1
    assert len(np.unique(labels)) == n + 1
    return labels


def by_label(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Sums of (G, R, C) over labels, (n, G)."""
    n = labels.max()
    return np.array(
        [np.bincount(labels.ravel(), np.nan_to_num(v).ravel(), n + 1)[1:] for v in values]
    ).T


@pytest.fixture(scope="module")
def mappings(
    tiny: TinyField, lattice: Lattice, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, np.ndarray]:
    labels = draw_labels(tiny.shape)
    folder = tmp_path_factory.mktemp("cells")
    return write_mappings(folder / "barcode_mappings.parquet", labels, lattice), labels


def test_expected_umis_of_a_field(
    tiny: TinyField, field: Path, mappings: tuple[Path, np.ndarray], lattice: Lattice
) -> None:
    path, labels = mappings
    adata = cell_table(field, path)
    expected = by_label(tiny.rates, labels)
    assert adata.uns["X"] == "expected"
    np.testing.assert_allclose(adata.X, expected, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(adata.X, open_field(field).sum_over(labels), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(adata.obsm["factors"] @ adata.varm["loadings"].T, adata.X, rtol=1e-5)
    np.testing.assert_allclose(adata.obs["expected_umis"], expected.sum(1), rtol=2e-3)
    np.testing.assert_allclose(cell_rates(adata, "ENSG00007"), adata.X[:, 7], rtol=1e-5)
    about = json.loads(adata.uns["virchow_st"])["expected_umis"]
    assert about["cells"] + about["outside"] == pytest.approx(np.nansum(tiny.rates), rel=2e-3)
    np.testing.assert_allclose(
        adata.obs["covered"],
        by_label(tiny.covered[None], labels)[:, 0] / np.bincount(labels.ravel())[1:],
    )
    row, col = np.nonzero(labels == 7)
    assert adata.obs["bins"].iloc[6] == len(row)
    assert adata.obs["area_um2"].iloc[6] == 4 * len(row)
    xy = col.mean() + CORNER[1] + 0.5, row.mean() + CORNER[0] + 0.5
    np.testing.assert_allclose(adata.obsm["spatial"][6], 2 * np.array(xy))
    px = MIRRORED @ [col.mean() + CORNER[1], row.mean() + CORNER[0], 1]
    np.testing.assert_allclose(adata.obsm["spatial_fullres_px"][6], px[:2] / px[2])
    assert list(adata.obs["patient"].unique()) == ["P9"]


def test_a_table_too_large_to_be_dense_has_factors(
    field: Path, mappings: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = cell_table(field, mappings[0])
    monkeypatch.setattr(table_module, "MOST_DENSE", 100)
    for out in (tmp_path / "c.h5ad", tmp_path / "c.zarr"):
        write_cells(field, mappings[0], out)
    adata = anndata.read_h5ad(tmp_path / "c.h5ad")
    assert adata.X is None
    assert adata.uns["X"] == "absent"
    np.testing.assert_allclose(cell_rates(adata, "GENE4"), full.X[:, 4], rtol=1e-5)
    some = cell_table(field, mappings[0], CellsConfig(genes="GENE4,GENE2"))
    assert list(some.var_names) == ["GENE4", "GENE2"]
    np.testing.assert_allclose(some.X, full.X[:, [4, 2]], rtol=1e-5)
    with pytest.raises(ConfigError, match="expected one of the table's 2; got 'NONE'"):
        cell_rates(some, "NONE")


def test_shares_of_bins_add_up(
    tiny: TinyField, field: Path, lattice: Lattice, tmp_path: Path
) -> None:
    discs = np.array([shapely.Point(x, 60).buffer(9) for x in (30, 44, 300, 511)])
    path = write_geojson(tmp_path / "c.geojson", shapely.transform(discs, lattice.to_px))
    adata = cell_table(field, path, CellsConfig(weights="area"))
    row, col = np.indices(tiny.shape)
    boxes = shapely.box(col - 0.5, row - 0.5, col + 0.5, row + 0.5)
    shares = np.array([shapely.area(shapely.intersection(boxes, disc)) for disc in discs])
    shares /= np.maximum(shares.sum(axis=0), 1)
    expected = np.einsum("nrc,grc->ng", shares, np.nan_to_num(tiny.rates))
    np.testing.assert_allclose(adata.X, expected, rtol=2e-3, atol=1e-4)


# --- counts ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows of two patches, the last one missing; array coordinates are pixels."""
    path = tmp_path_factory.mktemp("store") / "A.vst"
    write_store(path, n_patches=3, seed=5, slide="A")
    return path


def dense_counts(path: Path) -> np.ndarray:
    from virchow_st import open_store

    opened = open_store(path)
    dense = np.zeros((len(opened.genes), 256, 256))
    for patch in opened:
        at = slice(patch.row0, patch.row0 + 128), slice(patch.col0, patch.col0 + 128)
        dense[:, *at] = patch.counts().toarray().reshape(-1, 128, 128)
    return dense


def test_counts_of_a_store_are_exact(store: Path, tmp_path: Path) -> None:
    labels = draw_labels((256, 256), seed=2)
    labels[160:, 160:] = 0
    frame = Lattice("A", Homography(np.eye(3)), 0, 0, labels >= 0)
    path = write_mappings(tmp_path / "barcode_mappings.parquet", labels, frame)
    adata = cell_table(store, tmp_path)
    dense = dense_counts(store)
    kept = [int(name[7:16]) - 1 for name in adata.obs_names]
    expected = by_label(dense, labels)[kept]
    assert adata.uns["X"] == "observed"
    np.testing.assert_array_equal(adata.X.toarray(), expected)
    np.testing.assert_array_equal(adata.obs["umis"], expected.sum(1))
    about = json.loads(adata.uns["virchow_st"])["observed_umis"]
    assert about["cells"] + about["outside"] == dense.sum()
    counted = dense.any(axis=0)
    np.testing.assert_allclose(
        adata.obs["counted"], by_label(counted[None], labels)[kept, 0] / adata.obs["bins"]
    )
    assert (adata.var["measured"]).all()
    some = cell_table(store, path, CellsConfig(genes="GENE3,GENE1"))
    np.testing.assert_array_equal(some.X.toarray(), expected[:, [3, 1]])


def test_a_predicted_slide_lies_where_its_image_does(
    tiny: TinyField, store: Path, tmp_path: Path
) -> None:
    """Its bins are not those of the array; counts come from the store's own."""
    mpp = 1.25
    about = {"image": {"name": "he.tif", "mpp": mpp, "size_px": [845, 429]}}
    path = make_field(tiny, tmp_path / "p.zarr", about)
    predicted = Lattice(
        "he.tif", Homography(np.array([[1.6, 0, 0.8], [0, 1.6, 0.8], [0, 0, 1]])), 0, 0, tiny.tissue
    )
    discs = np.array([shapely.Point(x, y).buffer(4.9) for x in (20, 50, 90) for y in (15, 40, 70)])
    geojson = write_geojson(tmp_path / "c.geojson", shapely.transform(discs, predicted.to_px))
    adata = cell_table(path, geojson, store=store)
    labels = np.zeros(tiny.shape, int)
    row, col = np.indices(tiny.shape)
    for i, disc in enumerate(discs):
        labels[shapely.contains_xy(disc, col, row)] = i + 1
    np.testing.assert_allclose(adata.X, by_label(tiny.rates, labels)[:, :], rtol=2e-3, atol=1e-5)
    row, col = np.indices((256, 256))
    on_array = np.zeros((256, 256), int)
    in_px = shapely.transform(discs, predicted.to_px)
    for i, disc in enumerate(in_px):
        on_array[shapely.contains_xy(disc, col, row)] = i + 1
    observed = adata.layers["observed"].toarray()
    assert list(adata.var["measured"]) == [True] * 6 + [False] * 24
    np.testing.assert_array_equal(observed[:, :6], by_label(dense_counts(store), on_array))
    assert not observed[:, 6:].any()


def test_cells_of_a_run(tiny_run: Path, tmp_path: Path, vst: Callable[..., Answer]) -> None:
    labels = draw_labels((128, 128), n=20, seed=4)
    frame = Lattice("T", Homography(np.eye(3)), 0, 0, labels >= 0)
    path = write_mappings(tmp_path / "m.parquet", labels, frame)
    adata = cell_table(tiny_run, path)
    from virchow_st import open_store

    opened = open_store(tiny_run.parent / "T.vst")
    index = opened.genes.indices(*adata.var["gene_id"])
    dense = dense_counts(tiny_run.parent / "T.vst")[index]
    kept = [int(name[7:16]) - 1 for name in adata.obs_names]
    inner = np.zeros((256, 256), int)
    inner[:128, :128] = labels
    np.testing.assert_array_equal(adata.layers["observed"].toarray(), by_label(dense, inner)[kept])
    assert adata.uns["X"] == "expected"
    assert (adata.X > 0).all()


# --- files ----------------------------------------------------------------------------------------

READS = """
import sys, warnings
warnings.simplefilter("ignore")
import anndata, numpy as np, shapely, spatialdata
from spatialdata.transformations import get_transformation

s = spatialdata.read_zarr(sys.argv[1])
table, shapes = s["table"], s["cells"]
assert set(s.images) == {"he"} and set(s.labels) == {"tissue"}, s
elements, matched = spatialdata.match_element_to_table(s, "cells", "table")
element = elements["cells"]
assert len(element) == len(matched) == table.n_obs
assert list(element["cell_id"]) == list(matched.obs_names)
assert list(element["class"]) == list(matched.obs["class"])
middle = shapely.get_coordinates(shapely.centroid(element.geometry.values))
assert np.allclose(middle, matched.obsm["spatial"], atol=1e-4)
assert np.allclose(element.geometry.area, matched.obs["area_um2"])
to_px = get_transformation(shapes, "fullres_px").to_affine_matrix(("x", "y"), ("x", "y"))
px = middle @ to_px[:2, :2].T + to_px[:2, 2]
assert np.abs(px - matched.obsm["spatial_fullres_px"]).max() < 0.1
spatialdata.SpatialData(shapes={"c": shapes}, tables={}).write(sys.argv[3])
h = anndata.read_h5ad(sys.argv[2])
assert np.allclose(h.X, table.X) and list(h.obs_names) == list(table.obs_names)
(picture,) = h.uns["spatial"].values()
scale = picture["scalefactors"]["tissue_hires_scalef"]
height, width = picture["images"]["hires"].shape[:2]
x, y = (h.obsm["spatial"] * scale).max(axis=0)
assert x < width and y < height
"""


def test_files_open_in_their_own_readers(
    field: Path, lattice: Lattice, tmp_path: Path, vst: Callable[..., Answer]
) -> None:
    discs = np.array([shapely.Point(x, y).buffer(4) for x in (30, 160, 480) for y in (20, 200)])
    path = write_geojson(
        tmp_path / "c.geojson",
        shapely.transform(discs, lattice.to_px),
        classification=lambda i: {"name": "TS"[i % 2]},
    )
    for out in ("c.zarr", "c.h5ad"):
        answer = vst("cells", field, "--cells", path, "--out", tmp_path / out)
        assert answer.code == 0, answer
        assert "6 cells × 30 genes: 4 factors, expected UMIs" in answer.out
    places = [str(tmp_path / name) for name in ("c.zarr", "c.h5ad", "again.zarr")]
    done = subprocess.run([sys.executable, "-c", READS, *places], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Its own shapes are read back as cells; the affine on disk errs by less than 0.1 px.
    again = cell_table(field, tmp_path / "c.zarr")
    np.testing.assert_allclose(again.obs["area_um2"], 4 * shapely.area(discs), rtol=1e-3)


# --- refusals -------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_in_one_line(
    tiny: TinyField, field: Path, store: Path, lattice: Lattice, tmp_path: Path,
    mappings: tuple[Path, np.ndarray], vst: Callable[..., Answer],
) -> None:  # fmt: skip
    unknown = tiny.write(tmp_path / "old.zarr")
    for arguments, message in (
        ((unknown, "--out", "x.h5ad"), "records where its bins lie on the image; found one of an"),
        ((field, "--out", "x.csv"), "expected a name that ends in .h5ad, .zarr or .geojson"),
        ((field, "--out", field), "is already there; delete it"),
        ((field, "--out", "x.h5ad", "--store", store), "its bins lie elsewhere on the image"),
        ((store, "--out", "x.h5ad", "--store", store), "is a store itself; leave it out"),
        ((field, "--out", "x.h5ad", "--slide", "T"), "is a field, of one slide"),
        ((field, "--out", "x.h5ad", "--genes", "NONE"), "NONE"),
        ((tmp_path, "--out", "x.h5ad"), "expected a store, or a run of `vst train`"),
    ):
        out = [tmp_path / a if a == "x.h5ad" else a for a in arguments]
        answer = vst("cells", *out, "--cells", mappings[0])
        assert answer.code == 2, (arguments, answer)
        assert message in answer.err, answer.err
        assert answer.err.strip().count("\n") == 0, answer.err
    assert not (tmp_path / "x.h5ad").exists()
    assert not list(tmp_path.glob(".*"))


def test_stopping_leaves_nothing(
    field: Path, mappings: tuple[Path, np.ndarray], tmp_path: Path,
    vst: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from virchow_st.output.cells import write

    def stop(source: Any, table: Any, out: Path) -> None:
        out.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "_write_file", stop)
    answer = vst("cells", field, "--cells", mappings[0], "--out", tmp_path / "x.h5ad")
    assert answer.code == 130
    assert "stopped; nothing was kept" in answer.err
    assert not list(tmp_path.iterdir())

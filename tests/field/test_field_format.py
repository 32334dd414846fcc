"""The layout of docs/field-format.md: golden files, and what SpatialData and AnnData see."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_bytes import GOLDEN
from tiny_field import CORNER_UM, PROVENANCE, TinyField, plain_chunk

import virchow_st
from virchow_st.field.loadings import Loadings

needs_spatialdata = pytest.mark.skipif(
    find_spec("spatialdata") is None, reason="pip install 'virchow_st[spatial]'"
)
GOLDEN_FIELD = GOLDEN / "field.json"
# Whatever else a version of Zarr writes about an array does not change what it holds.
_OF_ARRAY = ("shape", "data_type", "chunk_grid", "codecs", "fill_value", "dimension_names",
             "attributes", "node_type", "zarr_format")  # fmt: skip


def golden_field() -> TinyField:
    """Written out, since NumPy's random numbers may differ between its versions."""
    tiny = TinyField(shape=(16, 8), n_genes=3, n_factors=2)
    tiny.covered = np.array([[1, 0], [1, 1], [0, 1], [1, 1]], bool).repeat(4, 0).repeat(4, 1)
    tiny.covered[5, 6] = False
    tiny.tissue = tiny.covered & (np.indices(tiny.shape).sum(axis=0) % 3 > 0)
    maps = (np.arange(256) % 61).reshape(2, 16, 8) / 16
    tiny.maps = np.where(tiny.covered, maps, np.nan).astype(np.float32)
    tiny.weights = np.array([[0.25, 2], [1.5, 0], [0.1, 0.3]], np.float32)
    tiny.loadings = Loadings(tiny.genes, tiny.weights)
    tiny.picture = (np.arange(32 * 16 * 3) % 251).reshape(32, 16, 3).astype(np.uint8)
    return tiny


def read_files(path: Path) -> dict[str, Any]:
    """All files of a folder by name: JSON as it is, bytes in hexadecimal."""
    found: dict[str, Any] = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path).as_posix()
        data = file.read_bytes()
        found[name] = json.loads(data) if file.name == "zarr.json" else data.hex()
    return found


def write_files(files: dict[str, Any], path: Path) -> None:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        data = json.dumps(content).encode() if isinstance(content, dict) else bytes.fromhex(content)
        (path / name).write_bytes(data)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    files: dict[str, Any] = json.loads(GOLDEN_FIELD.read_text("utf-8"))
    return files


def test_golden_files_are_read(golden: dict[str, Any], tmp_path: Path) -> None:
    """What this version wrote once is read by every later one."""
    write_files(golden, tmp_path / "a.zarr")
    field = virchow_st.open_field(tmp_path / "a.zarr")
    assert field.symbols == ("GENE0", "GENE1", "GENE0")
    assert field.factor_names == ("1: GENE1, GENE0 (ENSG00000), GENE0 (ENSG00002)",
                                  "2: GENE0 (ENSG00000), GENE0 (ENSG00002)")  # fmt: skip
    assert (field.corner_um, field.provenance) == (CORNER_UM, PROVENANCE)
    tiny = golden_field()
    np.testing.assert_array_equal(field.tissue_mask, tiny.tissue)
    np.testing.assert_array_equal(field.factors(), tiny.maps)
    np.testing.assert_array_equal(field.loadings, tiny.weights)
    np.testing.assert_allclose(field.gene("GENE1"), tiny.rates[1], rtol=1e-6)


def test_what_is_written_is_golden(golden: dict[str, Any], tmp_path: Path) -> None:
    """The same files, metadata and values; compressed bytes vary with the version of zstd."""
    written = read_files(golden_field().write(tmp_path / "a.zarr"))
    assert set(written) == set(golden)
    for name, expected in golden.items():
        actual = written[name]
        if isinstance(expected, dict):
            for key in _OF_ARRAY:
                assert actual.get(key) == expected.get(key), (name, key)
        else:
            actual, expected = (plain_chunk(bytes.fromhex(data)) for data in (actual, expected))
            assert actual == expected, name


def test_golden_bytes_are_the_values(golden: dict[str, Any]) -> None:
    """Read with Blosc alone: little-endian float32, factor by factor, row by row."""
    tiny = golden_field()
    name = "images/factors_2um/s0/c/0/0/0"
    values = np.frombuffer(plain_chunk(bytes.fromhex(golden[name])), "<f4").reshape(2, 256, 256)
    np.testing.assert_array_equal(values[:, :16, :8], tiny.maps)
    assert np.isnan(values[:, 16:]).all()
    loadings = np.frombuffer(plain_chunk(bytes.fromhex(golden["tables/loadings/X/c/0/0"])), "<f4")
    np.testing.assert_array_equal(loadings.reshape(3, 2), tiny.weights)
    covered = plain_chunk(bytes.fromhex(golden["labels/covered/s0/c/0/0"]))
    bins = np.frombuffer(covered, np.uint8).reshape(256, 256)[:16, :8]
    np.testing.assert_array_equal(bins == 1, tiny.covered)


def run_alone(code: str, *arguments: object) -> None:
    """In a process of its own: spatialdata brings dask, pandas and a hundred warnings."""
    code = "import sys, warnings\nwarnings.simplefilter('ignore')\n" + code
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


READ = """
import numpy as np, spatialdata, virchow_st
from spatialdata.transformations import get_transformation
path = sys.argv[1]
s, field = spatialdata.read_zarr(path), virchow_st.open_field(path)
assert s.attrs["virchow_st"] == field.provenance
assert set(s.labels) == {"tissue", "covered"} and set(s.tables) == {"loadings"}, s
"""
FACTORS = """
assert set(s.images) == {"he", "factors_2um", "factors_8um"}, s
table = s["loadings"]
assert tuple(table.obs["gene_id"]) == field.genes
assert tuple(table.obs["symbol"]) == field.symbols
assert tuple(table.obs_names) == tuple(field.labels)
assert tuple(table.var_names) == field.factor_names
assert (table.X == field.loadings).all()
assert all(name.split(": ")[1].split(", ")[0] == leading.split(", ")[0]
           for name, leading in zip(table.var_names, table.var["leading_genes"]))
fine, coarse = s["factors_2um"]["scale0"].image, s["factors_8um"]
assert tuple(fine.c.values) == tuple(coarse.c.values) == field.factor_names
g = field.genes.index("ENSG00007")
for image, um in (fine, 2), (coarse, 8):
    rates = np.tensordot(table.X[g], image.values, 1)
    assert np.allclose(rates, field.gene("ENSG00007", um), rtol=1e-6, equal_nan=True)
assert np.array_equal(s["covered"].values == 1, field.covered)
assert np.array_equal(s["tissue"].values == 1, field.tissue_mask)
for name, um in ("he", 1), ("factors_2um", 2), ("factors_8um", 8), ("tissue", 2), ("covered", 2):
    to_um = get_transformation(s[name]).to_affine_matrix(("x", "y"), ("x", "y"))
    assert np.allclose(to_um, [[um, 0, 40], [0, um, 16], [0, 0, 1]]), (name, to_um)
    to_px = get_transformation(s[name], "fullres_px").to_affine_matrix(("x", "y"), ("x", "y"))
    assert np.allclose(to_px, [[0, 4 * um, 71], [4 * um, 0, 169], [0, 0, 1]]), (name, to_px)
"""
ANEW = """
s.write(sys.argv[2])
again = virchow_st.open_field(sys.argv[2])
assert np.array_equal(again.gene("ENSG00007"), field.gene("ENSG00007"), equal_nan=True)
assert np.array_equal(again.window(250, 250, 9, 9), field.window(250, 250, 9, 9), equal_nan=True)
assert again.corner_um == field.corner_um and again.provenance == field.provenance
assert (again.picture()[0] == field.picture()[0]).all()
"""
DIRECT = """
assert set(s.images) == {"rates_2um", "rates_8um"}, s
assert (s["loadings"].X.toarray() == np.eye(4)).all()
assert np.array_equal(s["rates_8um"].sel(c="GENE1").values, field.gene("GENE1", 8), equal_nan=True)
"""


@needs_spatialdata
def test_spatialdata_opens_it_and_what_it_writes_anew_is_a_field(tmp_path: Path) -> None:
    path = TinyField().write(tmp_path / "a.zarr")
    run_alone(READ + FACTORS + ANEW, path, tmp_path / "b.zarr")


@needs_spatialdata
def test_spatialdata_opens_genes_held_directly(tmp_path: Path) -> None:
    path = TinyField(direct=True, n_genes=4).write(tmp_path / "a.zarr", picture=False)
    run_alone(READ + DIRECT, path)

"""Fields that are missing, damaged or of another format are refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from tiny_field import TinyField

import virchow_st
from virchow_st.errors import FieldError

Edit = Callable[[Any], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyField().write(tmp_path_factory.mktemp("whole") / "a.zarr")


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "a.zarr"))


def refused(path: Path, *words: str, read: bool = False) -> None:
    """Opening, or where ``read`` is set only reading, gives one line with these words."""
    if read:
        field = virchow_st.open_field(path)
        with pytest.raises(FieldError) as caught:
            field.gene("GENE3")
    else:
        with pytest.raises(FieldError) as caught:
            virchow_st.open_field(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: "), message
    assert "\n" not in message
    for word in words:
        assert word in message, message


def edit(file: Path, change: Edit) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_what_is_no_field(path: Path, tmp_path: Path) -> None:
    refused(tmp_path / "none.zarr", "no such field", "vst predict")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "found no zarr.json")
    zarr.create_group(tmp_path / "other.zarr")
    refused(tmp_path / "other.zarr", "expected a field, virchow_st.field/1; found another Zarr")
    edit(path / "zarr.json", lambda c: c["attributes"].pop("virchow_st_field"))
    refused(path, "expected a field, virchow_st.field/1; found test/1")


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"format": "virchow_st.field/2"}, ("found 'virchow_st.field/2'", "the version")),
        ({"format": None}, ("found None",)),
        ({"maps": "counts"}, ("expected 'factors' or 'rates'; got 'counts'",)),
        ({"maps": "rates"}, ("rates_2um is missing",)),
        ({"bin_um": 4}, ("bin_um: expected 2; got 4",)),
    ],
)
def test_another_format(path: Path, about: dict[str, Any], words: tuple[str, ...]) -> None:
    edit(path / "zarr.json", lambda c: c["attributes"]["virchow_st_field"].update(about))
    refused(path, *words)


@pytest.mark.parametrize(
    "part",
    ["tables/loadings", "tables", "tables/loadings/X", "tables/loadings/obs/gene_id",
     "images/factors_2um", "images/factors_2um/s0", "images/factors_8um", "labels/covered",
     "labels/tissue", "labels"],
)  # fmt: skip
def test_a_part_that_is_missing(path: Path, part: str) -> None:
    shutil.rmtree(path / part)
    refused(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"node_type": "array"}', "\0"])
@pytest.mark.parametrize(
    "name", ["", "images/factors_2um", "images/factors_2um/s0", "tables/loadings",
             "tables/loadings/X", "labels/covered/s0"]
)  # fmt: skip
def test_metadata_that_cannot_be_read(path: Path, name: str, text: str) -> None:
    (path / name / "zarr.json").write_text(text)
    refused(path)


def test_shapes_that_do_not_fit(path: Path) -> None:
    arrays = {
        "images/factors_2um/s0": ([4, 260, 520], [5, 264, 520], [4, 264], [4, 1 << 24, 520],
                                  [0, 264, 520]),
        "images/factors_8um/s0": ([4, 66, 131], [3, 66, 130]),
        "labels/covered/s0": ([264, 521], [66, 130]),
        "labels/tissue/s0": ([265, 520],),
        "tables/loadings/X": ([30, 5], [29, 4], [30], [30, 1 << 30]),
        "tables/loadings/obs/symbol": ([29], [1 << 40]),
    }  # fmt: skip
    for name, shapes in arrays.items():
        file = path / name / "zarr.json"
        before = file.read_text()
        for shape in shapes:
            edit(file, lambda c, shape=shape: c.update(shape=shape))
            refused(path)
        file.write_text(before)
    virchow_st.open_field(path)


def test_loadings_that_are_none(path: Path) -> None:
    X = zarr.open_array(path / "tables/loadings/X")
    for value in (np.nan, np.inf, -1.0):
        before = X[3, 1]
        X[3, 1] = value
        refused(path, "tables/loadings", "finite values of at least 0")
        X[3, 1] = before
    ids = zarr.open_array(path / "tables/loadings/obs/gene_id")
    ids[4] = ids[5]
    refused(path, "ids of genes, each once")


# --- pieces of the maps ---------------------------------------------------------------------------


def chunks(path: Path) -> list[Path]:
    return sorted(p for p in (path / "images/factors_2um/s0/c").rglob("*") if p.is_file())


def test_a_chunk_that_is_lost(path: Path) -> None:
    """Zarr takes it for one that was never written; what the field covers says otherwise."""
    chunks(path)[0].unlink()
    refused(path, "factors_2um", "row 0, column 0", "covered", read=True)
    assert np.isfinite(virchow_st.open_field(path).gene("GENE3", 8)).any()


@pytest.mark.parametrize("kept", [0, 3, 100, -1])
def test_a_chunk_that_was_cut_short(path: Path, kept: int) -> None:
    chunk = chunks(path)[1]
    chunk.write_bytes(chunk.read_bytes()[:kept])
    refused(path, "factors_2um", read=True)


def test_any_flipped_bit_is_noticed(path: Path) -> None:
    chunk = chunks(path)[0]
    data = chunk.read_bytes()
    rng = np.random.default_rng(0)
    for place, bit in zip(rng.integers(0, len(data), 40), rng.integers(0, 8, 40), strict=True):
        damaged = bytearray(data)
        damaged[place] ^= 1 << bit
        chunk.write_bytes(damaged)
        refused(path, "factors_2um", read=True)
    chunk.write_bytes(data)
    assert np.isfinite(virchow_st.open_field(path).gene("GENE3")).any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_none(path: Path, value: float) -> None:
    tiny = TinyField()
    array = zarr.open_array(path / "images/factors_2um/s0")
    row, col = np.argwhere(tiny.covered)[7]
    array[:, row, col] = value
    refused(path, "factors_2um", "finite values", read=True)


def test_values_where_there_should_be_none(path: Path) -> None:
    tiny = TinyField()
    array = zarr.open_array(path / "images/factors_2um/s0")
    row, col = np.argwhere(~tiny.covered)[7]
    array[:, row, col] = 1
    refused(path, "factors_2um", "none elsewhere", read=True)

"""``vst inspect FIELD``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_place import Vst
from tiny_field import PROVENANCE, TinyField


def test_a_field_is_described(vst: Vst, tmp_path: Path) -> None:
    tiny = TinyField()
    path = tiny.write(tmp_path / "a.zarr")
    answer = vst("inspect", path, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    cells = tiny.covered.reshape(66, 4, 130, 4).all(axis=(1, 3))
    maps = tiny.maps[:, cells.repeat(4, 0).repeat(4, 1)].sum(axis=1, dtype=float)
    rates = (tiny.weights @ maps).sum()
    assert (found["n_genes"], found["n_factors"], found["held"]) == (30, 4, "factors")
    assert found["bins"] == [264, 520]
    assert found["umi"] == pytest.approx(rates, rel=5e-4)
    assert found["umi_per_bin"] == pytest.approx(rates / (16 * cells.sum()), rel=5e-4)
    assert found["covered_mm2"] == pytest.approx(cells.sum() * 64e-6)
    assert found["tissue_mm2"] == pytest.approx(tiny.tissue.sum() * 4e-6)
    assert found["provenance"] == PROVENANCE
    shares = tiny.weights.sum(axis=0) * maps / rates
    assert [factor["share"] for factor in found["factors"]] == pytest.approx(
        shares.tolist(), rel=1e-3
    )
    assert [factor["name"] for factor in found["factors"]] == list(tiny.loadings.factor_names)
    answer = vst("inspect", path)
    assert answer.code == 0, answer.err
    for word in ("30", "264×520 of 2 µm", "per 2 µm bin", tiny.loadings.leading[3][0]):
        assert word in answer.out


def test_genes_held_directly_are_not_listed_one_by_one(vst: Vst, tmp_path: Path) -> None:
    tiny = TinyField(direct=True, n_genes=5)
    path = tiny.write(tmp_path / "a.zarr")
    answer = vst("inspect", path)
    assert answer.code == 0, answer.err
    assert "5, held directly" in answer.out
    assert "GENE3" not in answer.out


def test_what_is_refused(vst: Vst, tmp_path: Path, tiny_run: Path) -> None:
    path = TinyField(shape=(16, 16)).write(tmp_path / "a.zarr")
    answer = vst("inspect", path, tiny_run.parent / "T.vst")
    assert answer.code == 2
    assert "expected stores or fields; got both" in answer.err
    next(p for p in (path / "images/factors_8um/s0/c").rglob("*") if p.is_file()).unlink()
    answer = vst("inspect", path)
    assert answer.code == 2
    (line,) = answer.err.splitlines()
    assert line.startswith(f"error: {path}: factors_8um: expected finite values")


def test_provenance_of_another_program(vst: Vst, tmp_path: Path) -> None:
    tiny = TinyField(shape=(16, 16))
    path = tiny.write(tmp_path / "a.zarr")
    meta = path / "zarr.json"
    content = json.loads(meta.read_text())
    content["attributes"]["virchow_st"] = {"runs": [3], "encoder": "x"}
    meta.write_text(json.dumps(content))
    answer = vst("inspect", path)
    assert answer.code == 0, answer.err
    assert "another program's" in answer.out

"""``vst export``: what is refused, and that a stopped export leaves nothing."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import pytest
from cli_place import Vst, assert_refused
from exported import SPATIAL


def test_refusals_leave_nothing(vst: Vst, tiny_run: Path, tmp_path: Path) -> None:
    store, inputs, outputs = tiny_run.parent / "T.vst", tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    outputs.mkdir()
    out = outputs / "a"
    assert_refused(vst("export", tmp_path / "none", "--out", out), "none", "a store, or a run")
    assert_refused(vst("export", inputs, "--out", out), "neither")
    (inputs / "fold-A").mkdir()
    (inputs / "fold-B").mkdir()
    (inputs / "config.toml").touch()
    assert_refused(vst("export", inputs, "--out", out), "fold-A, fold-B", "give one")
    assert_refused(
        vst("export", tiny_run, "--out", out, "--genes", "GENEX"), "GENEX", "did you mean"
    )
    assert_refused(vst("export", tiny_run, "--out", out, "--genes", " , "), "genes: expected")
    many = ",".join(f"NONE{i}" for i in range(1000))  # longer than any path may be
    assert_refused(vst("export", tiny_run, "--out", out, "--genes", many), "'NONE0'")
    assert_refused(vst("export", tiny_run, "--out", out, "--slide", "T-2"), "one of T of", "T-2")
    assert_refused(vst("export", store, "--out", out, "--slide", "T"), "--slide")
    for name in ("npz", "ome-zarr"):
        assert_refused(vst("export", store, "--out", out, "--format", name), name, "--genes")
    assert_refused(vst("export", store, "--out", out, "--format", "csv"), "csv")
    if find_spec("anndata") is None:
        assert_refused(vst("export", store, "--out", out), SPATIAL)
    (inputs / "job.json").write_text("{}")
    assert_refused(vst("export", inputs, "--out", out), "unfinished")
    assert not list(outputs.iterdir())
    out.write_text("mine")
    assert_refused(vst("export", tiny_run, "--out", out), str(out), "already there")
    assert out.read_text() == "mine"


def test_a_run_that_is_not_evaluated_or_damaged(vst: Vst, tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    maps = run / "maps" / "T.h5"
    with h5py.File(maps, "a") as f:
        del f.attrs["store"]
    out = tmp_path / "out"
    assert_refused(vst("export", run, "--out", out), "T.h5", "older version", "vst evaluate")
    maps.write_bytes(maps.read_bytes()[:1000])
    assert_refused(vst("export", run, "--out", out), "T.h5", "HDF5", "vst evaluate")
    maps.unlink()
    assert_refused(vst("export", run, "--out", out), f"vst evaluate {run}")
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


def test_of_several_slides_one_is_named(vst: Vst, tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    for name in ("T-1", "T-2"):
        shutil.copy(run / "maps" / "T.h5", run / "maps" / f"{name}.h5")
    (run / "maps" / "T.h5").unlink()
    out = tmp_path / "out.npz"
    assert_refused(
        vst("export", run, "--out", out, "--format", "npz"), "one of T-1, T-2", "got none"
    )
    answer = vst("export", run, "--out", out, "--format", "npz", "--slide", "T-2")
    assert answer.code == 0, answer.err


def test_stopped_on_the_way_leaves_nothing(
    vst: Vst, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / ".a.zarr.part").mkdir()  # of one that was killed
    monkeypatch.setattr("virchow_st.output.export.write.BinImages.write", stop)
    answer = vst("export", tiny_run, "--out", tmp_path / "a.zarr")
    assert answer.code == 130
    assert "nothing was kept" in answer.err
    assert not list(tmp_path.iterdir())

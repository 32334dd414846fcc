"""Hostile names of patients, slides and genes: no file is written outside the run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cli_place import Vst, command
from tiny_store import write_store


@pytest.mark.parametrize("patients", [("S 1", "S_1", "../../x"), ("../../x", "/etc/y", "a/b")])
def test_every_file_lies_in_the_run(vst: Vst, tmp_path: Path, patients: tuple[str, ...]) -> None:
    """The last is the test patient; their names are paths, or two of them one file's name."""
    place = tmp_path / "some" / "where"
    (place / "stores").mkdir(parents=True)
    stores = [place / "stores" / f"{i}.vst" for i in range(len(patients))]
    for seed, (store, patient) in enumerate(zip(stores, patients, strict=True)):
        write_store(store, patient, 2, seed=seed, slide=patient, n_genes=3)
    before = listing(tmp_path)
    run, out = place / "run", place / "out.zarr"
    train = [
        "train", *stores, "--run", run, "--test-patient", patients[-1], "--panel", "top:3",
        "--decoder", "linear", "--epochs", 1, "--device", "cpu",
    ]  # fmt: skip
    for arguments in (
        train,
        ["evaluate", run, "--device", "cpu"],
        ["figures", run, "--genes", "GENE1"],
        ["export", run, "--slide", patients[-1], "--out", out],
    ):
        answer = vst(*arguments)
        assert answer.code == 0, answer.err
    added = listing(tmp_path) - before
    elsewhere = [p for p in added if not p.startswith(("some/where/run/", "some/where/out.zarr/"))]
    assert elsewhere == []
    assert len(list((run / "maps").iterdir())) == 1
    pictures = [path.relative_to(run / "figures") for path in (run / "figures").rglob("*.png")]
    assert sum("overview" in str(path) for path in pictures) == len(patients), pictures


@pytest.mark.parametrize("key", ["patient", "slide"])
@pytest.mark.parametrize("name", ["E\x1b[31mSC", "a\nb", "\x00", "", "\ud800"])
def test_names_that_a_terminal_would_obey_are_refused(
    vst: Vst, tmp_path: Path, key: str, name: str
) -> None:
    store = write_store(tmp_path / "A.vst", "A", 1).path
    path = store / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {key: name}))
    for arguments in (["inspect", store], ["verify", store], ["export", store, "--out", "x"]):
        answer = vst(*arguments)
        assert answer.code == 2
        assert f"{path}: {key}: expected" in answer.err
        assert "\x1b" not in answer.out + answer.err


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", ["evaluate", "inspect", "doctor"])
def test_standard_output_that_takes_ascii_alone(tiny_run: Path, tmp_path: Path, what: str) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    arguments: dict[str, list[object]] = {
        "evaluate": ["evaluate", run, "--device", "cpu"],
        "inspect": ["inspect", tiny_run.parent / "T.vst"],
        "doctor": ["doctor"],
    }
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONIOENCODING"} | ascii_alone
    done = subprocess.run(command(*arguments[what]), capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout.decode("ascii")
    if what == "evaluate":
        assert "PCC" in done.stdout.decode("ascii").upper()

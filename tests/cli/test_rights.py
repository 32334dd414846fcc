"""Missing rights to write or read, and a limit on file sizes: one line, and nothing is left.

Commands are tried without the right to pass over permissions, which root is denied for it.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_place import Place

_DROP, _OVERRIDE, _READ_SEARCH = 24, 1, 2  # prctl's PR_CAPBSET_DROP and two capabilities
TOGETHER = """
import contextlib, io, json, sys
from virchow_st_cli.main import run
for arguments in json.loads(sys.argv[1]):
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        code = run(arguments)
    print("told", json.dumps([arguments, code, err.getvalue()]))
"""


def as_a_user() -> None:
    """For the child between fork and exec: root becomes one for whom permissions count."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for capability in (_OVERRIDE, _READ_SEARCH):
            if libc.prctl(_DROP, capability, 0, 0, 0):
                os._exit(77)


def refusals(folder: Path, commands: list[list[Any]]) -> Iterator[tuple[list[str], str]]:
    """The arguments and the line of each command; nothing in the folder is changed by any."""
    before = listing(folder)
    typed = [[str(a) for a in arguments] for arguments in commands]
    done = subprocess.run(
        [sys.executable, "-c", TOGETHER, json.dumps(typed)],
        capture_output=True, text=True, timeout=600, preexec_fn=as_a_user,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip("root may not give up its rights here")
    told = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("told ")]
    assert len(told) == len(commands), done
    for arguments, code, err in told:
        assert code == 2, (arguments, err)
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in err
        yield arguments, line
    assert listing(folder) == before


def listing(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b""
        for p in folder.rglob("*")
    }


@pytest.fixture
def run(stain_run: Path, tmp_path: Path) -> Iterator[Path]:
    yield Path(shutil.copytree(stain_run, tmp_path / "closed" / "run"))
    permit(tmp_path, 0o700)  # to be removed


def permit(folder: Path, mode: int) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(mode)


def test_a_folder_that_may_not_be_written(run: Path, place: Place) -> None:
    closed, cpu = run.parent, ["--device", "cpu"]
    image = place.slide.parent / "P5" / "tissue_image.tif"
    permit(closed, 0o500)
    extract = place.extract()
    extract[extract.index("--store") + 1] = closed / "new.vst"
    train = place.train("--test-patient", "P5")
    train[train.index("--run") + 1] = closed / "new"
    commands: list[list[Any]] = [
        extract,
        train,
        ["train", "--run", run, "--resume", *cpu],
        ["evaluate", run, *cpu],
        ["figures", run],
        ["report", run],
        ["predict", run, image, "--out", closed / "p.zarr", *cpu],
        ["export", run, "--out", closed / "e.h5ad", "--format", "h5ad"],
        ["simulate", closed / "s", "--bins", 128, "--genes", 60],
        ["demo", closed / "d"],
        ["predict", run, image, "--out", closed / "no" / "p.zarr", *cpu],
    ]
    for _, line in refusals(closed, commands):
        assert "Permission denied" in line
        assert str(closed) in line


def test_a_part_of_a_run_that_may_not_be_written(run: Path) -> None:
    """An evaluation deleted the old metrics and then could not put the new maps in their place."""
    (run / "maps").chmod(0o500)
    for _, line in refusals(run.parent, [["evaluate", run, "--device", "cpu"]]):
        assert f"{run / 'maps'}: Permission denied; get the rights to it" in line


def test_files_that_may_not_be_read(run: Path, place: Place) -> None:
    image = place.slide.parent / "P5" / "tissue_image.tif"
    cpu, out, square = ["--device", "cpu"], run.parent / "out", "binned_outputs/square_002um"
    commands: dict[str, Callable[[Path], list[Any]]] = {
        "metrics.json": lambda run: ["report", run],
        "maps/P5.h5": lambda run: ["export", run, "--out", out],
        "checkpoints/best/tensors.safetensors": lambda run: ["evaluate", run, *cpu],
        "checkpoints/best": lambda run: ["predict", run, image, "--out", out, *cpu],
        f"{square}/filtered_feature_bc_matrix.h5": lambda outs: place.extract(outs=outs),
        f"{square}/spatial/scalefactors_json.json": lambda outs: place.extract(outs=outs),
        "binned_outputs": lambda outs: place.extract(outs=outs),
    }
    closed, typed = [], []
    for i, (name, command) in enumerate(commands.items()):
        source = place.slide / "outs" if "binned_outputs" in name else run
        copy = shutil.copytree(source, run.parent / f"copy{i}")
        closed.append(copy / name)
        typed.append(command(copy))
        closed[-1].chmod(0)
    for path, (_, line) in zip(closed, refusals(place.folder, typed), strict=True):
        assert str(path) in line
        assert "Permission denied" in line
        assert "get the rights to it" in line

"""What SECURITY.md promises of every command: no network, and files as the umask says."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_place import Answer

from virchow_st_cli.main import cli

Vst = Callable[..., Answer]
# They run the other commands, or measure them, on data of their own.
COMPOSED = {"demo", "bench"}
ASKS = {"copy"}  # from or to a URL, always


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names and addresses that anything asks the network for; it gets none."""
    found: list[str] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        found.append(repr(arguments[-2:]))
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return found


@pytest.fixture
def mask() -> Iterator[int]:
    """Others may read nothing of what is written."""
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


@pytest.mark.slow
def test_no_command_asks_the_network_and_every_file_is_as_the_umask_says(
    vst: Vst,
    stain_run: Path,
    simulated: Path,
    stores: dict[str, Path],
    tmp_path: Path,
    asked: list[str],
    mask: int,
) -> None:
    run = tmp_path / "scored"
    shutil.copytree(stain_run, run)
    shutil.copytree(stores["P5"], tmp_path / "P5.vst")
    for path in (run, *run.rglob("*")):  # as a user's own files are before a command
        path.chmod(0o750 if path.is_dir() else 0o640)
    slide, cpu = simulated / "P5", ["--device", "cpu"]
    image = slide / "tissue_image.tif"
    new, field = tmp_path / "new", tmp_path / "new" / "denoised.zarr"
    new.mkdir()
    square = [[x, y] for x, y in ((100, 100), (700, 100), (700, 700), (100, 700), (100, 100))]
    cell = {"type": "Polygon", "coordinates": [square]}
    (tmp_path / "cells.geojson").write_text(
        json.dumps([{"type": "Feature", "properties": {}, "geometry": cell}])
    )
    few = ["--epochs", 1, "--decoder", "linear", "--panel", "top:3", *cpu]
    commands: list[list[Any]] = [
        ["doctor", image, slide / "outs"],
        ["simulate", new / "slides", "--bins", 128, "--genes", 60, "--patients", "P1"],
        ["extract", slide / "outs", "--image", image, "--store", new / "P5.vst",
         "--patient", "P5", "--encoder", "stain", *cpu],
        ["inspect", new / "P5.vst"],
        ["verify", new / "P5.vst"],
        ["train", stores["P1"], stores["P5"], "--run", new / "run", "--test-patient", "P5", *few],
        ["evaluate", run, *cpu],
        ["figures", run],
        ["report", run],
        ["predict", run, image, "--out", new / "rates.zarr", *cpu],
        ["denoise", stores["P5"], "--out", field, "--factors", 2],
        ["export", run, "--out", new / "run.h5ad", "--format", "h5ad"],
        ["cells", stores["P5"], "--cells", tmp_path / "cells.geojson", "--out", new / "c.h5ad"],
        ["push", run, new / "model"],
    ]  # fmt: skip
    assert {command[0] for command in commands} == set(cli.commands) - COMPOSED - ASKS
    before = set(tmp_path.rglob("*"))
    for command in commands:
        answer = vst(*command)
        assert answer.code == 0, (command, answer.err)
        assert asked == [], command
    written = [path for path in tmp_path.rglob("*") if path not in before]
    assert len(written) > 50
    wrong = {str(p): oct(stat.S_IMODE(p.stat().st_mode)) for p in written if _mode(p) & mask}
    assert wrong == {}
    unreadable = [p for p in written if not p.stat().st_mode & stat.S_IRGRP]
    assert unreadable == []  # the group may read, as the umask allows


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_network_is_asked_where_a_name_on_it_is_given(
    vst: Vst, tmp_path: Path, asked: list[str]
) -> None:
    """So the test above would have seen it."""
    for command in (
        ["predict", "hf:nobody/nothing", tmp_path / "x.tif", "--out", tmp_path / "x"],
        ["copy", "https://nobody.invalid/x.vst", tmp_path / "x.vst"],
    ):
        asked.clear()
        answer = vst(*command)
        assert answer.code == 2
        assert asked, command

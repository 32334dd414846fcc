"""Output that is made to be shared contains no path and no name of the machine."""

from __future__ import annotations

import getpass
import shutil
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from cli_place import Vst

PLACE = "elsewhere-7f3a"  # a folder's name that nothing else has


def content(path: Path) -> Iterator[bytes]:
    """The bytes of all files, and of what is compressed in them."""
    files = [p for p in (path, *path.rglob("*")) if p.is_file()]
    assert files
    for file in files:
        yield file.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())
            yield from (_utf32(archive.read(name)) for name in archive.namelist())
    elif path.is_file():
        with h5py.File(path) as file:
            found: list[Any] = []
            file.visititems(lambda _, node: found.append(node))
            for node in found:
                yield repr(dict(node.attrs)).encode()
                if isinstance(node, h5py.Dataset) and node.dtype.kind in "OSU":
                    yield repr(node[()]).encode()
                    yield from (str(text).encode() for text in np.ravel(node.asstr()[()]))
    else:
        for _, node in zarr.open_group(path, mode="r").members(max_depth=None):
            yield repr(dict(node.attrs)).encode()
            if isinstance(node, zarr.Array) and node.dtype.kind in "OSUT":
                yield from (str(text).encode() for text in np.ravel(node[...]))


def _utf32(array: bytes) -> bytes:
    """Text of a NumPy array of texts, four bytes a character."""
    return array.replace(b"\0", b"")


@pytest.mark.parametrize("name", ["spatialdata", "ome-zarr", "h5ad", "npz"])
def test_no_output_says_where_its_sources_lie(
    vst: Vst,
    stain_run: Path,
    simulated: Path,
    stores: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    place = tmp_path / PLACE
    run = shutil.copytree(stain_run, place / "run")
    store = shutil.copytree(stores["P5"], place / "P5.vst")
    image = shutil.copy(simulated / "P5" / "tissue_image.tif", place / "P5.tif")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    near = Path("..") / PLACE  # as typed it may be a relative path too
    how = ["--format", name]
    cpu = ["--device", "cpu"]
    gene = (run / "panel.tsv").read_text("utf-8").splitlines()[1].split("\t")[0]
    made = {
        "run": ["export", run, *how],
        "typed": ["export", near / "run", *how],
        "store": ["export", store, "--genes", gene, *how],
        "prediction": ["predict", near / "run", image, *how, *cpu],
        "kept": ["export", run, *how, "--keep-paths"],
        "kept prediction": ["predict", run, image, *how, *cpu, "--keep-paths"],
    }
    secrets = [PLACE, str(tmp_path), str(simulated), str(stores["P5"].parent)]
    secrets += [str(Path.home()) + "/", f"/{getpass.getuser()}/"]
    if len(host := socket.gethostname()) > 7:  # a shorter one may stand in any bytes
        secrets.append(host)
    for which, arguments in made.items():
        out = tmp_path / "out" / which
        answer = vst(*arguments, "--out", out)
        assert answer.code == 0, answer.err
        found = b"\n".join(content(out))
        if "kept" in which:
            assert str(place).encode() in found  # so it would have been found
            continue
        assert [secret for secret in secrets if secret.encode() in found] == []
    events = list((run / "tensorboard").glob("*"))
    assert not [path.name for path in events if socket.gethostname() in path.name]
    assert (tmp_path / "out" / "prediction_tissue.png").is_file()
    assert PLACE.encode() not in (tmp_path / "out" / "prediction_tissue.png").read_bytes()

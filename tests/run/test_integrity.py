"""Files of a run that decide what its predictions mean are those that it was trained with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_place import Answer


def swapped(content: bytes) -> bytes:
    """The second and third line change places."""
    lines = content.splitlines(keepends=True)
    return b"".join([lines[0], lines[2], lines[1], *lines[3:]])


def doubled(content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    return b"".join([*lines[:2], lines[1], *lines[3:]])


def flipped(content: bytes) -> bytes:
    """One bit in the middle is another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


CHANGES = [
    ("panel.tsv", swapped),
    ("panel.tsv", doubled),
    ("panel.tsv", flipped),
    ("config.toml", flipped),
    ("split.json", flipped),
    ("checkpoints/best/tensors.safetensors", flipped),
    ("checkpoints/best/state.json", flipped),
]
READS = {"evaluate": 7, "predict": 7, "train": 7, "export": 4}  # an export reads no weights


@pytest.mark.parametrize(
    ("command", "name", "change"),
    [(command, *change) for command, n in READS.items() for change in CHANGES[:n]],
)
def test_a_changed_file_is_refused_in_one_line(
    vst: Callable[..., Answer],
    tiny_run: Path,
    tmp_path: Path,
    command: str,
    name: str,
    change: Callable[[bytes], bytes],
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    if command == "train":  # which reads the last checkpoint
        name = name.replace("best", "last")
    (run / name).write_bytes(change((run / name).read_bytes()))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    arguments = {
        "evaluate": [run, "--device", "cpu"],
        "predict": [run, tmp_path / "no.tif", "--out", tmp_path / "out.zarr", "--device", "cpu"],
        "export": [run, "--out", tmp_path / "out.npz", "--format", "npz"],
        "train": ["--run", run, "--resume", "-q"],
    }
    answer = vst(command, *arguments[command])
    assert answer.code == 2, answer
    (line,) = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert "fault of virchow_st" not in line
    assert "no.tif" not in line, "the run was not checked"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

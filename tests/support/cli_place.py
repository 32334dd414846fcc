"""Runs mistaken commands in a scratch folder and checks how they are refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lmdb


class Answer(NamedTuple):
    """Result of a command: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


Vst = Callable[..., Answer]  # the fixture ``vst``


class Place:
    """A scratch folder for mistaken commands, with read-only slides and stores."""

    def __init__(self, folder: Path, simulated: Path, stores: dict[str, Path]) -> None:
        self.folder, self.stores = folder, stores
        self.slide = simulated / "P1"

    def listing(self) -> dict[str, bytes]:
        """Path → content of every file and folder below the scratch folder."""
        return {
            str(p.relative_to(self.folder)): p.read_bytes() if p.is_file() else b""
            for p in sorted(self.folder.rglob("*"))
        }

    def outs(self) -> Path:
        """A copy of the slide's outs that a test may damage."""
        return Path(shutil.copytree(self.slide / "outs", self.folder / "outs"))

    def extract(
        self, outs: Path | None = None, image: Path | None = None, store: str = "new.vst"
    ) -> list[object]:
        return [
            "extract", outs or self.slide / "outs", "--image",
            image or self.slide / "tissue_image.tif", "--store", self.folder / store,
            "--patient", "P1", "--encoder", "stain",
        ]  # fmt: skip

    def train(self, *more: object) -> list[object]:
        return ["train", self.stores["P1"], self.stores["P5"], "--run", self.folder / "run",
                "--decoder", "linear", "--epochs", 1, "--device", "cpu", *more]  # fmt: skip


def assert_refused(answer: Answer, *words: str) -> None:
    """Check that a command ended with exit code 2 and one line of error with these words."""
    assert answer.code == 2, answer
    (line,) = [line for line in answer.err.splitlines() if line.startswith("error")]
    for word in words:
        assert word in line, line


def refused(vst: Callable[..., Answer], place: Place, arguments: list[object]) -> str:
    """Run a mistaken command and return its error.

    Asserts that the error is one line, the exit code is 2, and the folder is unchanged.
    """
    before = place.listing()
    answer = vst(*arguments)
    assert answer.code == 2, answer
    assert place.listing() == before, "something was left behind"
    lines = answer.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, answer.err
    assert lines[-1] == errors[0], "the error is not the last thing said"
    for text in (answer.err, answer.out):
        assert "Traceback" not in text
        assert "fault of virchow_st" not in text
        assert "\x1b" not in text
    return errors[0]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "virchow_st_cli.main", *map(str, arguments)]


def run_vst(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120)


def records(store: Path) -> dict[bytes, bytes]:
    """Every record of a store."""
    with (
        lmdb.open(str(store), readonly=True, lock=False, max_dbs=0) as env,
        env.begin() as txn,
        txn.cursor() as cursor,
    ):
        return {bytes(k): bytes(v) for k, v in cursor}

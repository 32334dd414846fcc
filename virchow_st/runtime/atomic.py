"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that the file is there whole or not at all, also after a power cut."""
    aside = path.with_name(path.name + ".part")
    with open(aside, "w", encoding="utf-8") as f:
        json.dump(content, f, indent=1, ensure_ascii=False)
        f.flush()
        os.fsync(f.fileno())
    os.replace(aside, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Let the names in a folder survive a power cut."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """A folder for unfinished work beside ``out``; its ``result`` becomes ``out`` at the end.

    Whatever happens before leaves neither. A process that was killed leaves the folder,
    ``.NAME.part``, which the next one for ``out`` removes.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        (aside / "result").rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(out.parent)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file beside the path to write to, which takes its name when it is whole."""
    aside = path.with_name(path.name + ".part")
    try:
        yield aside
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    os.replace(aside, path)

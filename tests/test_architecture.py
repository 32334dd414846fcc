"""docs/architecture.md names files and functions that exist; its picture is that of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from imports import ROOT, rooms_imported, without_implied

PAGE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "images" / "rooms.svg"
FOLDERS = {"cli": ROOT / "cli"}  # every other path of a walk lies in virchow_st/
WALKS = ("A slide through", "A batch through", "A run through", "An image through")

# A step of a walk: its file, and the functions, classes or methods in it.
STEP = re.compile(r"\d+\. `(?P<file>[\w/]+\.py)`, (?P<names>`[\w.]+`(?:(?:,| and) `[\w.]+`)*): ")


def steps_of(walk: str) -> list[tuple[str, str]]:
    """The steps of the walk whose heading begins so, as (file, name) pairs in their order."""
    page = PAGE.read_text("utf-8")
    section = re.search(rf"^## {walk}.*?(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    assert section, walk
    steps = []
    for item in re.findall(r"^\d+\. .*$", section.group(), re.MULTILINE):
        step = STEP.match(item)
        assert step, f"expected '1. `file.py`, `name`: a sentence'; found {item}"
        names = re.findall(r"`([\w.]+)`", step["names"])
        steps += [(step["file"], name) for name in names]
    return steps


def file_of(path: str) -> Path:
    top, _, rest = path.partition("/")
    return FOLDERS[top] / rest if top in FOLDERS else ROOT / "virchow_st" / path


def names_in(file: Path) -> set[str]:
    """Functions, classes and methods that a file defines: ``train``, ``Trainer.fit``."""
    found = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("walk", WALKS)
def test_walks_name_what_exists(walk: str) -> None:
    steps = steps_of(walk)
    assert len(steps) >= 6, walk
    for path, name in steps:
        assert file_of(path).is_file(), f"{walk}: {path}"
        assert name in names_in(file_of(path)), f"{walk}: {path} has no {name}"


def test_every_room_has_a_paragraph() -> None:
    rooms = re.search(
        r"^## The rooms.*?(?=^## )", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert rooms
    heads = re.findall(r"^- \*\*(.*?)\*\*", rooms.group(), re.MULTILINE)
    described = {name for head in heads for name in re.findall(r"`(\w+)`", head)}
    assert described == set(rooms_imported()) | {"cli"}


def test_the_picture_shows_the_imports_of_the_code() -> None:
    """The remedy is `python docs/draw_rooms.py`, after a place for a new room in its table."""
    svg = PICTURE.read_text("utf-8")
    drawn = {tuple(pair) for pair in re.findall(r'id="imports:(\w+):(\w+)"', svg)}
    imported = rooms_imported()
    texts = {
        word for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg) for word in text.split()
    }
    assert set(imported) <= texts
    packages = {room for room in imported if (ROOT / "virchow_st" / room).is_dir()}
    above = {room for pair in drawn for room in pair}
    assert packages - {"runtime", "kernels"} <= above
    assert drawn == without_implied({room: imported[room] & above for room in above})


def test_arrows_that_longer_ways_imply_are_left_out() -> None:
    rooms = {"a": {"b", "c", "d"}, "b": {"c"}, "c": set[str](), "d": {"c"}}
    assert without_implied(rooms) == {("a", "b"), ("a", "d"), ("b", "c"), ("d", "c")}

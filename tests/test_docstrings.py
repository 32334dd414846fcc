"""The examples in docstrings print what they say."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "virchow_st"


def modules_with_examples() -> list[str]:
    """Found by their text, so that modules without examples are not imported."""
    paths = sorted(path for path in PACKAGE.rglob("*.py") if has_examples(path))
    places = [path.relative_to(PACKAGE.parent).with_suffix("").parts for path in paths]
    return [".".join(p[:-1] if p[-1] == "__init__" else p) for p in places]


def has_examples(path: Path) -> bool:
    lines = path.read_text("utf-8").splitlines()
    return any(line.lstrip().startswith(">>> ") and "+SKIP" not in line for line in lines)


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_print_what_they_say(name: str) -> None:
    failed, tried = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0
    assert tried > 0

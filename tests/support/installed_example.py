"""An example package of docs/examples, importable with the metadata of an installation."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@contextmanager
def installed_example(name: str, folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Put the example on the path until the end, or until ``undo`` of what is given."""
    example = EXAMPLES / name
    project = tomllib.loads((example / "pyproject.toml").read_text("utf-8"))["project"]
    module = name.replace("-", "_")
    (about := folder / "env" / f"{module}-{project['version']}.dist-info").mkdir(parents=True)
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (about / "entry_points.txt").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "env"))
        patch.syspath_prepend(str(example))
        yield patch
    sys.modules.pop(module, None)

"""Finds the imports of the package's modules in their source, without running them."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def modules_of(folder: Path, package: str) -> dict[str, Path]:
    """Dotted name → file of every module of a package."""
    found = {}
    for file in sorted(folder.rglob("*.py")):
        parts = [package, *file.relative_to(folder).with_suffix("").parts]
        found[".".join(parts).removesuffix(".__init__")] = file
    return found


def imports_of(file: Path, name: str, known: set[str]) -> set[str]:
    """Modules that a file imports, including imports within functions and for type checking."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: expected absolute imports"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else str(node.module))
    return found - {name}


def room(module: str) -> str:
    """The room of a module: the folder, or the single file, directly in the package."""
    return module.split(".")[1]


def rooms_imported() -> dict[str, set[str]]:
    """Room of the package → the other rooms that its modules import."""
    modules = modules_of(ROOT / "virchow_st", "virchow_st")
    inner = {name: file for name, file in modules.items() if name != "virchow_st"}
    rooms: dict[str, set[str]] = {room(name): set() for name in inner}
    for name, file in inner.items():
        for target in imports_of(file, name, set(modules)):
            if target.startswith("virchow_st.") and room(target) != room(name):
                rooms[room(name)].add(room(target))
    return rooms


def without_implied(rooms: dict[str, set[str]]) -> set[tuple[str, str]]:
    """The imports between rooms that are not implied by a path through other rooms.

    Args:
        rooms: every room and the rooms that it imports, without circles.

    Returns:
        Pairs (importing room, imported room): the transitive reduction.
    """

    def below(name: str) -> set[str]:
        return rooms[name].union(*(below(target) for target in rooms[name]))

    return {
        (name, target)
        for name, targets in rooms.items()
        for target in targets
        if not any(target in below(other) for other in targets - {target})
    }

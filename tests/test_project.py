"""What describes the project agrees with itself: version, citation, constraints, workflows."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import virchow_st

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_one_version() -> None:
    """It stands in `virchow_st/__init__.py`; the build reads it there."""
    assert "version" not in PROJECT["project"]
    assert PROJECT["tool"]["setuptools"]["dynamic"] == {
        "version": {"attr": "virchow_st.__version__"}
    }
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [virchow_st.__version__]
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    newest = re.findall(r"^## ([\d.]+) \((\d{4}-\d\d-\d\d)\)$", changes, re.MULTILINE)[0]
    assert newest == (
        virchow_st.__version__,
        re.findall(r"^date-released: (.*)$", citation, re.M)[0],
    )
    assert version("virchow_st") == virchow_st.__version__, "install the package again"


def requirements(extra: str) -> list[str]:
    return PROJECT["project"]["optional-dependencies"][extra]


def names(lines: list[str]) -> set[str]:
    """Names as a package index compares them."""
    found = (re.match(r"[\w.-]+", line) for line in lines)
    return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in found if match}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.lstrip().startswith("#")]
    return {re.sub(r"[-_.]+", "-", name).lower(): pinned for name, pinned in pairs}


def test_every_requirement_is_pinned_for_ci() -> None:
    wanted = [*PROJECT["project"]["dependencies"]]
    for extra in ("dev", "docs", "spatial", "tracking", "dist"):
        wanted += [line for line in requirements(extra) if not line.startswith("virchow_st[")]
    assert names(wanted) <= set(pins("constraints.txt"))


def test_lower_bounds_are_those_of_pyproject() -> None:
    """Each dependency of a user is tested at the first version that pyproject.toml allows."""
    lowest = pins("lower_bounds.txt")
    wanted = PROJECT["project"]["dependencies"] + requirements("spatial") + requirements("tracking")
    for line in wanted:
        name, bound = line.split(">=")
        (key,) = names([name])
        assert lowest[key].split(".")[: bound.count(".") + 1] == bound.split("."), line


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_targets_of_the_makefile(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    called = re.findall(r"run: make (.*)$", path.read_text("utf-8"), re.MULTILINE)
    assert called
    for line in called:
        used = {word for word in line.split() if "=" not in word}
        assert used <= targets, line


def test_python_versions_are_those_that_are_tested() -> None:
    tested = re.search(r"python: \[(.*)\]", (ROOT / ".github/workflows/tests.yml").read_text())
    assert tested
    found = [c.split(" :: ")[-1] for c in PROJECT["project"]["classifiers"] if ":: 3." in c]
    assert re.findall(r'"([\d.]+)"', tested[1]) == found
    assert PROJECT["project"]["requires-python"] == f">={found[0]}"


def test_every_test_module_has_a_name_of_its_own() -> None:
    """Two of one name in different folders stop pytest when it collects them together."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, n in names.items() if n > 1] == []


def test_the_checklist_of_the_ecosystem_says_what_is_here() -> None:
    """docs/ecosystem.md names files that exist, and what it admits to lack is lacking."""
    text = (ROOT / "docs" / "ecosystem.md").read_text("utf-8")
    coded = set(re.findall(r"`([^`]+)`", text))
    paths = {path for path in coded if re.fullmatch(r"[\w./-]*(/[\w.-]+|\.(md|toml|cff))", path)}
    paths |= coded & {"LICENSE", "tests"}
    assert len(paths) >= 12, paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    project = PROJECT["project"]
    assert ("| MIT: `LICENSE`" in text) == (project["license"] == "MIT")
    assert (ROOT / "LICENSE").read_text("utf-8").startswith("MIT License")
    assert ("No public address is recorded" in text) == ("urls" not in project)
    assert {"anndata", "spatialdata"} <= names(requirements("spatial"))
    on = (ROOT / ".github/workflows/tests.yml").read_text("utf-8").split("permissions:")[0]
    assert "branches: [main]" in on
    assert "pull_request:" in on
    assert "pre-releases:" in (ROOT / ".github/workflows/nightly.yml").read_text("utf-8")
    assert f"; {virchow_st.__version__} is prepared and not tagged" in text


def test_every_item_of_the_checklist_has_its_line() -> None:
    text = (ROOT / "docs" / "ecosystem.md").read_text("utf-8")
    rows = re.findall(r"^\| ([^|]+) \| (yes|in part|\*\*no\*\*) \| ([^|]+) \|$", text, re.MULTILINE)
    assert len(rows) == 10  # eight mandatory, two recommended
    for word in ("licence", "versioned", "registry", "tests", "API", "support", "structures",
                 "maintainer", "tutorials", "cookiecutter"):  # fmt: skip
        assert sum(word in asked for asked, _, _ in rows) == 1, word

"""How benchmarks measure in turns, and how their tables are shown and reported."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from virchow_st.bench.tables import Table, document, interleaved

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_interleaved_takes_turns_and_the_best() -> None:
    calls: list[str] = []
    now = 0.0
    takes = {"a": iter([90, 3, 3, 1, 2]), "b": iter([80, 4, 6, 7, 7])}  # the first is the warm-up

    def call(name):
        nonlocal now
        calls.append(name)
        now += next(takes[name])

    both = (lambda: call("a")), (lambda: call("b"))
    seconds = interleaved(*both, rounds=2, burst=2, clock=lambda: now)
    assert "".join(calls) == "ab" + "aabb" * 2
    assert seconds == [1.5, 5]


def test_cells_are_shown_by_their_column() -> None:
    columns = ["what", "ours, ms", "ratio", "share of memcpy", "patches"]
    rows = [["a", 0.01234, 9.56, 0.3141, 12345], ["b", None, 1234.5, 1.2, 0]]
    table = Table("t", columns, rows)
    assert table.texts() == [
        ["a", "0.012", "9.56×", "31.4 %", "12,345"],
        ["b", "–", "1,234×", "120 %", "0"],
    ]
    assert Table("t", ["a", "b"], [["x", math.nan]]).content()["rows"] == [["x", None]]
    with pytest.raises(ValueError, match="expected 2 cells"):
        Table("t", ["a", "b"], [["x"]])


def test_document_is_json() -> None:
    content = document("x", [Table("t", ["a", "b"], [["x", 1.5]], ["n"])], ("no-such-package",))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert {"cpu", "cores", "python", "numpy", "numba", "torch"} <= set(content["machine"])
    assert content["tables"] == [
        {"title": "t", "columns": ["a", "b"], "rows": [["x", 1.5]], "notes": ["n"]}
    ]


def test_report_rewrites_only_what_is_between_the_markers(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import report

    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- begin x -->\nold\n<!-- end x -->\nafter \\1\n", "utf-8")
    report.publish("x", [Table("T", ["a", "b"], [["r", 2.0]], ["note"])], tmp_path / "x.json")
    content = json.loads((tmp_path / "x.json").read_text("utf-8"))
    for _ in range(2):  # writing it again changes nothing
        report.rewrite(readme, content)
        text = readme.read_text("utf-8")
        assert text.startswith("before\n<!-- begin x -->\n")
        assert text.endswith("\n<!-- end x -->\nafter \\1\n")
        assert "old" not in text
        assert text.count("| r | 2.00 |") == text.count("**T**") == text.count("note") == 1
    with pytest.raises(ValueError, match="begin y"):
        report.rewrite(readme, content | {"name": "y"})


def test_every_benchmark_has_its_place_in_the_readme() -> None:
    text = (BENCHMARKS / "README.md").read_text("utf-8")
    for path in sorted(BENCHMARKS.glob("bench_*.py")):
        name = re.search(r'publish\(\s*"(\w+)"', path.read_text("utf-8"))
        assert name, f"{path.name} does not end with publish"
        assert f"<!-- begin {name[1]} -->" in text, f"README.md has no place for {path.name}"

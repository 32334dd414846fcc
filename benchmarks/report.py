"""Reports the tables of a benchmark: on the screen, as JSON, and in README.md.

A benchmark measures, builds `Table`s and ends with `publish`::

    from report import Table, interleaved, publish

    ours, plain = interleaved(call_ours, call_plain, rounds=5)  # best seconds of each
    table = Table("What is compared", ["kernel", "ours, ms", "plain, ms", "ratio"],
                  [["sum_pool", 1e3 * ours, 1e3 * plain, plain / ours]], ["50 genes, one patch"])
    publish("kernels", [table], options.json)                   # options.json: Path or None

Cells are numbers, and column headings contain the unit (see `Table` for the display). ``--json
FILE`` contains ``{"name", "machine", "tables": [{"title", "columns", "rows", "notes"}]}``.

In README.md, the tables of ``name`` are written between two markers::

    <!-- begin kernels -->
    <!-- end kernels -->

``make bench`` replaces everything between them, including the line that describes the machine; text
about the numbers belongs outside. A new benchmark adds a heading, a sentence on what is compared
and the two markers, which ``python benchmarks/report.py FILE.json...`` then fills.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from virchow_st.bench.tables import Table, document, interleaved, machine, machine_line

__all__ = ["Table", "interleaved", "machine", "publish", "rewrite"]

README = Path(__file__).with_name("README.md")


def publish(
    name: str, tables: Sequence[Table], json_path: Path | None, packages: Sequence[str] = ()
) -> None:
    """Print the tables, and write them as JSON if a path is given.

    Args:
        name: name of the benchmark, in JSON and in README.md's markers.
        tables: its tables.
        json_path: the file of ``--json``, or None.
        packages: distributions whose versions are listed in the description of the machine.
    """
    content = document(name, tables, packages)
    print(machine_line(content["machine"]))
    for table in tables:
        print(f"\n{table.title}")
        print(aligned([list(table.columns), *table.texts()]))
        for note in table.notes:
            print(note)
    if json_path:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        json_path.write_text(text + "\n", "utf-8")


def aligned(lines: list[list[str]]) -> str:
    """Text columns, the first aligned left and the others right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def rewrite(readme: Path, content: dict[str, Any]) -> None:
    """Replace a benchmark's tables between its markers in README.md.

    Args:
        readme: file to change.
        content: content of the JSON that `publish` wrote.

    Raises:
        ValueError: the two markers of this name do not occur once each and in order.
    """
    name = content["name"]
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    text = readme.read_text("utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{readme}: expected one line {begin} and one line {end} after it")
    blocks = [machine_line(content["machine"])]
    for table in content["tables"]:
        table = Table(**table)
        heads = "| " + " | ".join(table.columns) + " |"
        rule = "|---|" + "---:|" * (len(table.columns) - 1)
        rows = ["| " + " | ".join(row) + " |" for row in table.texts()]
        blocks += [f"**{table.title}**", "\n".join([heads, rule, *rows]), *table.notes]
    block = "\n\n".join([begin, *blocks, end])
    pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
    readme.write_text(re.sub(pattern, lambda _: block, text, flags=re.DOTALL), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tables of benchmarks to README.md.")
    parser.add_argument("json", type=Path, nargs="+", help="files written by --json")
    for path in parser.parse_args().json:
        rewrite(README, json.loads(path.read_text("utf-8")))


if __name__ == "__main__":
    main()

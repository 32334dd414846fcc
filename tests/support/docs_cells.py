"""Runs the code cells of a page of the documentation, without Sphinx.

    python docs_cells.py PAGE FOLDER

writes the page's figures to FOLDER. The last value of a cell is drawn, if it is a picture.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from pathlib import Path
from typing import Any


def cells_of(page: Path) -> list[str]:
    """The code of a page's cells, in order."""
    blocks = re.findall(
        r"^```\{code-cell\}[^\n]*\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return [re.sub(r"\A(?::[^\n]*\n)+", "", block) for block in blocks]


def run_page(page: Path, out: Path) -> int:
    """Run a page in its own folder; return the number of figures."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    n = 0

    def save(figure: Any) -> None:
        nonlocal n
        n += 1
        figure.savefig(out / f"{page.stem}-{n}.png", dpi=80, bbox_inches="tight")

    def show() -> None:
        for number in plt.get_fignums():
            save(plt.figure(number))
        plt.close("all")

    plt.show = show  # type: ignore[assignment]
    os.chdir(page.parent)
    names: dict[str, Any] = {"__name__": "__main__"}
    for code in cells_of(page):
        tree = ast.parse(code)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, str(page), "exec"), names)
        if last is not None:
            assert isinstance(last, ast.Expr)
            value = eval(compile(ast.Expression(last.value), str(page), "eval"), names)
            if hasattr(value, "savefig"):
                save(value)
            elif value is not None:
                print(value)
    return n


if __name__ == "__main__":
    print(run_page(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()), "figures")

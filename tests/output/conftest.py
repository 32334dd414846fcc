"""Reports and exports of small runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_page import Page, copy_run

from virchow_st.output.report import write_report


@pytest.fixture
def run(evaluated_run: Path, tmp_path: Path) -> Path:
    """A copy of `evaluated_run` with two pictures, for a test to change and report."""
    return copy_run(evaluated_run, tmp_path / "run")


@pytest.fixture(scope="session")
def reported(evaluated_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `evaluated_run` with two pictures and its report; read only."""
    run = copy_run(evaluated_run, tmp_path_factory.mktemp("reported") / "run")
    write_report(run)
    return run


@pytest.fixture(scope="session")
def page(reported: Path) -> Page:
    """The page of `reported`."""
    return Page(reported / "report.html")


@pytest.fixture(scope="session")
def of_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_run` exported as OME-Zarr, alone in its folder; read only."""
    from virchow_st_cli.main import run as vst

    out = tmp_path_factory.mktemp("of_run") / "T.zarr"
    assert vst(["export", str(tiny_run), "--out", str(out)]) == 0
    return out

"""The figures in the report: their order and captions, and those that are missing or old."""

from __future__ import annotations

import base64
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from report_page import Page
from report_run import write_picture

import virchow_st.output.report as report
from virchow_st.output.report import pictures, write_report
from virchow_st_cli.console import Console


def test_figures_come_in_the_order_of_their_kinds_with_captions(run: Path) -> None:
    write_picture(run / "figures" / "mine.png", 300, 200)
    page = Page(write_report(run))
    assert [str(image["alt"]).split(".")[0] for image in page.images] == [
        "Maps at 8, 4 and 2 µm: T-1 GENE1", "Training", "mine",
    ]  # fmt: skip
    assert [image["width"] for image in page.images] == ["1600", "1600", "300"]
    webp = base64.b64decode(str(page.images[0]["src"]).partition(",")[2])
    shown = cv2.imdecode(np.frombuffer(webp, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (round(400 * 1600 / 2160), 1600, 3)
    assert page.says("figures/training_curves.png")
    assert page.says("Loss and validation PCC by epoch")


def test_figures_are_drawn_where_there_are_none(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(run / "figures")
    asked = []

    def draw(run: Path, genes: list[str] | None, *_: object) -> None:
        asked.append(genes)
        write_picture(run / "figures" / "training_curves.png")

    monkeypatch.setattr(report, "draw_into", draw)
    assert len(Page(write_report(run, ["GENE2"])).images) == 1
    assert asked == [["GENE2"]]


def test_figures_beyond_the_room_are_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "FIGURES_BYTES", 3000)
    write_picture(run / "figures" / "training_curves.png", 20, 20)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (300, 300, 3), dtype=np.uint8)
    cv2.imwrite(str(run / "figures" / "multiscale_T-1_GENE1.png"), noise)
    page = Page(write_report(run))
    assert len(page.images) == 1
    assert page.says("Left out to keep this file small: multiscale_T-1_GENE1.png")


def test_figures_older_than_the_results_are_said_to_be(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    past = (run / "metrics.json").stat().st_mtime - 3600
    os.utime(run / "figures" / "training_curves.png", (past, past))
    page = Page(write_report(run, progress=Console(quiet=True)))
    assert page.says("These figures are older than the results")
    assert "older than metrics.json; run `vst figures" in capfd.readouterr().err


def test_every_kind_of_figure_has_a_caption() -> None:
    for kind in ("overview_P5", "multiscale_P5_A", "patches_P5", "mosaic_P5_A", "genes",
                 "sparsity", "calibration", "training_curves", "against"):  # fmt: skip
        found = pictures._kind(Path(f"{kind}.png"))
        assert found is not None
        assert kind.startswith(found)
        assert len(pictures.KINDS[found][1]) > 20
    assert pictures._kind(Path("genesis.png")) is None

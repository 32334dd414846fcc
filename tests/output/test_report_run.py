"""What the report says of the run: data, split, licence, baselines, undefined scores."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
from pathlib import Path

from report_page import Page

from virchow_st.output.report import sections, write_report
from virchow_st.run.results import read_metrics, write_metrics


def test_paths_are_told_where_they_are_wanted(run: Path, evaluated_run: Path) -> None:
    page = write_report(run, keep_paths=True).read_text("utf-8")
    assert str(evaluated_run.parent / "A1.vst") in page


def test_it_says_how_the_run_was_made(reported: Path, page: Page, evaluated_run: Path) -> None:
    assert page.says("linear decoder on tiny tokens, poisson loss at 2, 4, 8, 16 µm; tested on")
    split = json.loads((reported / "split.json").read_text())
    assert page.says(split["xxh64"])
    n_train = sum(len(member["patches"]) for member in split["train"])
    assert ["A", str(n_train), str(4 - n_train), "–"] in page.rows
    assert ["all", str(n_train), str(4 - n_train), "7"] in page.rows
    for slide in split["slides"]:
        assert page.says(slide["records_xxh64"])
    for store in ("A1", "T1", "T2"):
        assert page.says(f"{store}.vst")
    assert str(evaluated_run.parent) not in (reported / "report.html").read_text("utf-8")
    assert ["lr", "0.005"] in page.rows
    assert page.says(f"Python {sys.version.split()[0]}")
    assert page.says("no restriction noted")


def test_stores_that_are_gone_or_changed_are_said_to_be(run: Path, tmp_path: Path) -> None:
    config = (run / "config.toml").read_text()
    (place,) = set(re.findall(r'"(.*)/A1\.vst"', config))
    moved = tmp_path / "stores"
    shutil.copytree(place, moved, ignore=lambda folder, names: [n for n in names if n == "run"])
    (run / "config.toml").write_text(config.replace(place, str(moved)))
    assert not Page(write_report(run)).says("no readable store")
    shutil.rmtree(moved / "A1.vst")
    manifest = json.loads((moved / "T2.vst" / "store.json").read_text())
    (moved / "T2.vst" / "store.json").write_text(json.dumps({**manifest, "records_xxh64": "0"}))
    page = Page(write_report(run))
    assert page.says("the store is missing or cannot be read")
    assert page.says("the store was changed after training")


def test_a_licence_and_a_better_baseline_cannot_be_overlooked(run: Path) -> None:
    metrics = read_metrics(run)
    metrics["encoder"] |= {"name": "virchow2", "licence": "CC-BY-NC-ND 4.0: non-commercial"}
    ridge = copy.deepcopy(metrics["scales"]["8"]["pcc"]) + 0.1
    metrics["baselines"]["ridge"]["8"]["pcc"] = ridge
    metrics["differences"]["ridge"]["8"]["pcc"] = {
        "difference": -0.1, "ci95": [-0.2, -0.05], "p": 0.01,
    }  # fmt: skip
    write_metrics(run, metrics)
    page = Page(write_report(run))
    assert page.says("virchow2: CC-BY-NC-ND 4.0: non-commercial")
    assert page.says("Below a baseline")
    assert page.says("linear, poisson is below ridge on tokens in PCC:")
    assert re.search(r'<span class="below"[^>]*>!' + f"{ridge:.3f}", page.text)
    assert f"ridge on tokens {ridge:.3f}" in str(sections.overview(metrics))


def test_undefined_figures_are_dashes(run: Path) -> None:
    metrics = read_metrics(run)
    for scales in (metrics["scales"], *metrics["baselines"].values()):
        for figures in scales.values():
            figures |= dict.fromkeys(figures)
    for scales in metrics["differences"].values():
        for figures in scales.values():
            for paired in figures.values():
                paired |= dict.fromkeys(paired)
    write_metrics(run, metrics)
    lines = (run / "per_gene.csv").read_text().splitlines()
    n = len(lines[0].split(","))
    empty = [",".join([*line.split(",")[:3], *[""] * (n - 3)]) for line in lines[1:]]
    (run / "per_gene.csv").write_text("\n".join([lines[0], *empty]) + "\n")
    page = Page(write_report(run))
    assert ["linear, poisson", "–", "–", "–", "–"] in page.rows
    figures = [g["figures"]["8"] for g in page.json("gene-data")["genes"]]
    assert all(value is None for of_gene in figures for value in of_gene)

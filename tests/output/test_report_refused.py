"""The report and hostile names, missing and damaged files, and a stop on the way."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from report_page import Page
from report_run import HOSTILE, rename_gene, write_picture

from virchow_st.errors import ConfigError
from virchow_st.output.report import slides, write_report
from virchow_st.run.evaluated import read_results
from virchow_st.run.results import read_metrics, write_metrics


def test_names_cannot_break_the_page(run: Path) -> None:
    rename_gene(run, HOSTILE)
    write_picture(run / "figures" / "multiscale_<img src=x onerror=alert(1)>.png")
    metrics = read_metrics(run)
    metrics["test_patients"] = [HOSTILE]
    metrics["encoder"]["licence"] = HOSTILE
    write_metrics(run, metrics)
    hostile = run.rename(run.with_name('a "b" <i>&amp;'))
    page = Page(write_report(hostile))
    assert page.open == []
    assert HOSTILE not in page.text
    assert "<!--" not in page.text
    assert "<img src=x" not in page.text
    assert HOSTILE in [gene["label"] for gene in page.json("gene-data")["genes"]]
    assert page.says('a "b" <i>&amp;')


def test_two_genes_of_one_symbol_are_told_apart(run: Path) -> None:
    rename_gene(run, read_results(run).panel[1].symbol)
    labels = [gene["label"] for gene in Page(write_report(run)).json("gene-data")["genes"]]
    assert len(set(labels)) == 5
    assert sum("(ENSG" in label for label in labels) == 2


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("metrics.json", "metrics.json: not found; run `vst evaluate"),
        ("per_gene.csv", "per_gene.csv: not found; run `vst evaluate"),
        ("history.jsonl", "history.jsonl: not found; run `vst train` first"),
        ("split.json", "split.json: (not found; train again|cannot be read)"),
        ("config.toml", "config.toml: (not found|cannot be read)"),
        ("maps/T-1.h5", r"maps: holds no \.h5 file|maps/T-2"),
    ],
)
def test_a_missing_file_is_named(run: Path, file: str, message: str) -> None:
    (run / file).unlink()
    if file.startswith("maps"):
        (run / "maps" / "T-2.h5").unlink()
    with pytest.raises(ConfigError, match=message):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r",pcc,", ",nothing,", "column 'pcc' is missing"),
        (r"(?m),[^,]*((?:,[^,]*){3})$", r"\1", "column 'morans_i_residual' is missing"),
        (r"(?s)(,8,[^,]*),.*", r"\1", "line 4: expected 27 fields; got 4"),
        (r"(,16,)[^,]*", r"\1nan", "expected numbers; got nan"),
        (r"(,16,)[^,]*", r"\1many", "could not convert"),
        (r"(?s)\n.*", "\n", "holds no gene"),
    ],
)
def test_a_damaged_table_of_genes_is_refused(run: Path, old: str, new: str, message: str) -> None:
    path = run / "per_gene.csv"
    path.write_text(re.sub(old, new, path.read_text(), count=0 if "m)" in old else 1))
    with pytest.raises(ConfigError, match=message):
        write_report(run)


def test_a_configuration_of_other_stores_is_refused(run: Path) -> None:
    path = run / "config.toml"
    path.write_text(re.sub(r'    ".*/T2\.vst",\n', "", path.read_text()))
    with pytest.raises(ConfigError, match=r"expected the 3 stores of split\.json; got 2"):
        write_report(run)


def test_a_damaged_picture_is_refused(run: Path) -> None:
    (run / "figures" / "training_curves.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"training_curves\.png: cannot be read as PNG"):
        write_report(run)


def test_a_report_that_fails_leaves_the_one_before(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_report(run).read_bytes()

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(slides, "gene_maps", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob("*.part"))


def test_the_command_says_where_it_is_and_refuses_in_one_line(run: Path, vst: Any) -> None:
    gene = read_results(run).panel[0]
    answer = vst("report", run, "--genes", gene.symbol)
    assert answer.code == 0
    assert re.fullmatch(rf"{run}/report\.html: 0\.\d MB; open it in a browser\n", answer.out)
    answer = vst("report", run, "--genes", "GENE99")
    assert (answer.code, answer.out) == (2, "")
    assert re.search(r"error: --genes: the run's panel: has no gene 'GENE99'; did you", answer.err)
    answer = vst("report", run, "--genes", ",")
    assert (answer.code, answer.out) == (2, "")
    assert "genes: expected symbols or ids separated by commas, or a file; got" in answer.err
    answer = vst("report", run / "nothing")
    assert answer.code == 2
    assert "nothing: no such folder; give the folder that vst train wrote" in answer.err

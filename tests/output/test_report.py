"""The report as a file: one self-contained page with the run's scores, genes and maps."""

from __future__ import annotations

import base64
import math
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from report_page import Page

import virchow_st.output.report as report
from virchow_st.output.report import slides, write_report
from virchow_st.output.report.markup import data_script
from virchow_st.run.results import PER_GENE, read_metrics, read_per_gene
from virchow_st.run.score_table import score_rows, table_caption, table_title
from virchow_st_cli.console import Console
from virchow_st_cli.scores import print_scores


def test_the_page_is_whole_in_itself(reported: Path, page: Page) -> None:
    assert page.open == []  # every element is closed
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "default-src 'none'" in page.text
    assert not re.search(r"@import|url\(", page.text[: page.text.index("</style>")])
    assert not list(reported.glob("*.part"))


def test_the_same_results_give_the_same_bytes(reported: Path, run: Path) -> None:
    assert write_report(run).read_bytes() == (reported / "report.html").read_bytes()


def test_its_table_is_the_one_that_evaluate_prints(
    reported: Path, page: Page, capfd: pytest.CaptureFixture[str]
) -> None:
    metrics = read_metrics(reported)
    print_scores(Console(), {"linear, poisson": metrics})
    printed = [" ".join(line.split()) for line in capfd.readouterr().out.splitlines()]
    shown = [" ".join(row) for row in page.rows]
    rows = score_rows({"linear, poisson": metrics})
    assert len(rows) > 30
    places = []
    for row in rows:
        cells = ("!" * (i in row.below) + cell for i, cell in enumerate(row.cells))
        words = " ".join(" ".join([row.label, *cells]).split())
        assert words in printed
        places.append(next(i for i, s in enumerate(shown) if " ".join(s.split()) == words))
    assert len(set(places)) >= len(set(rows)) - 8  # some rows of two sections are alike
    assert page.says(table_title(metrics))
    assert page.says(" ".join(table_caption(metrics).split()))


def test_it_holds_the_maps_of_every_slide_and_gene(reported: Path, page: Page) -> None:
    told = page.json("slide-data")
    assert [slide["name"] for slide in told] == ["T-1", "T-2"]
    for s, slide in enumerate(told):
        with h5py.File(reported / "maps" / f"{slide['name']}.h5") as f:
            assert (slide["height"], slide["width"]) == f["scored_mask"].shape
            assert (slide["row0"], slide["col0"]) == (f.attrs["row0"], f.attrs["col0"])
        assert [entry["gene"] for entry in slide["genes"]] == list(range(5))
        for entry in slide["genes"]:
            assert set(entry["tops"]) == {"2", "4", "8", "16"}
            for scale in entry["tops"]:
                for what in ("observed", "predicted"):
                    png = base64.b64decode(page.data[f"map-{s}-{entry['gene']}-{scale}-{what}"])
                    assert png.startswith(b"\x89PNG")
        assert base64.b64decode(page.data[f"he-{s}-0-0-0"]).startswith(b"\xff\xd8")


def test_its_genes_are_those_of_per_gene_csv_the_strongest_first(
    reported: Path, page: Page
) -> None:
    told = page.json("gene-data")
    by_gene = {(score.gene.id, score.scale_um): score for score in read_per_gene(reported)}
    strengths = []
    for gene in told["genes"]:
        for scale in (2, 4, 8, 16):
            values = [getattr(by_gene[gene["id"], scale], name) for name in told["columns"]]
            assert gene["figures"][str(scale)] == [None if math.isnan(v) else v for v in values]
        at_8 = by_gene[gene["id"], 8]
        strengths.append(0 if math.isnan(at_8.pcc * at_8.mean) else at_8.pcc * at_8.mean)
    assert strengths == sorted(strengths, reverse=True)
    assert set(told["columns"]) <= set(PER_GENE)


def test_named_genes_come_alone_and_first(run: Path, page: Page) -> None:
    order = [gene["label"] for gene in page.json("gene-data")["genes"]]
    named = Page(write_report(run, [order[3], order[1]]))
    assert [g["label"] for g in named.json("gene-data")["genes"]][:2] == [order[3], order[1]]
    assert [entry["gene"] for entry in named.json("slide-data")[0]["genes"]] == [0, 1]


def test_what_there_is_no_room_for_is_left_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "FINE_GENES", 2)
    whole = Page(write_report(run))
    entries = whole.json("slide-data")[0]["genes"]
    assert ["2" in entry["tops"] for entry in entries] == [True, True, False, False, False]

    sizes = {name: len(data_script(name, text)) for name, text in whole.data.items()}
    coarse = sum(n for name, n in sizes.items() if re.match(r"map-0-\d-(8|16)-", name))
    first_fine = sum(n for name, n in sizes.items() if re.match(r"map-0-0-[24]-", name))
    monkeypatch.setattr(slides, "MAPS_BYTES", 2 * (coarse + first_fine))
    entries = Page(write_report(run)).json("slide-data")[0]["genes"]
    assert ["2" in entry["tops"] for entry in entries] == [True, False, False, False, False]

    monkeypatch.setattr(slides, "MAPS_BYTES", 2 * (coarse - 1))
    entries = Page(write_report(run)).json("slide-data")[0]["genes"]
    assert [entry["gene"] for entry in entries] == [0, 1, 2, 3]
    assert not any("2" in entry["tops"] for entry in entries)


def test_the_image_is_coarser_where_there_is_no_room(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(run / "maps" / "T-1.h5", "r+") as f:
        rows, cols = 384, 512
        for name in ("rate", "counts", "scored_mask", "image"):
            old = f[name]
            factor = 2 if name == "image" else 1
            lead = old.shape[:1] if name in ("rate", "counts") else ()
            shape = (*lead, factor * rows, factor * cols, *old.shape[len(lead) + 2 :])
            dtype = old.dtype
            del f[name]
            f.create_dataset(name, data=np.ones(shape, dtype))
    whole = Page(write_report(run))
    assert [whole.json("slide-data")[0][name] for name in ("levels", "umPerPx")] == [2, 1]
    size = sum(len(text) for name, text in whole.data.items() if name.startswith("he-0"))
    monkeypatch.setattr(slides, "IMAGE_BYTES", 2 * (size - 1))
    coarser = Page(write_report(run))
    assert [coarser.json("slide-data")[0][name] for name in ("levels", "umPerPx")] == [1, 2]
    assert {name for name in coarser.data if name.startswith("he-0")} == {"he-0-0-0-0"}


def test_the_viewer_is_the_one_that_make_vendor_fetches() -> None:
    folder = Path(report.__file__).parent / "vendor"
    script = (folder / "openseadragon.min.js").read_text("utf-8")
    makefile = Path(__file__).parents[2] / "Makefile"
    version = re.search(r"VIEWER := openseadragon-([\d.]+)", makefile.read_text())
    assert version is not None
    assert script.startswith(f"//! openseadragon {version[1]}\n")
    assert len(script.encode()) < 400_000
    assert "</script" not in script.lower()
    assert "<!--" not in script
    assert "sourceMappingURL" not in script
    licence = (folder / "openseadragon.LICENSE.txt").read_text("utf-8")
    assert "Redistribution and use in source and binary forms" in licence

"""The report as a file: what it says, what it holds, what it leaves out, and what it refuses."""

from __future__ import annotations

import base64
import copy
import json
import math
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from report_run import HOSTILE, rename_gene, write_picture

import virchow_st.output.report as report
from virchow_st.errors import ConfigError
from virchow_st.output.report import pictures, sections, slides, write_report
from virchow_st.output.report.markup import data_script
from virchow_st.run.evaluated import read_results
from virchow_st.run.results import PER_GENE, read_metrics, read_per_gene, write_metrics
from virchow_st.run.score_table import score_rows, table_caption, table_title
from virchow_st_cli.console import Console
from virchow_st_cli.scores import print_scores


def copy_run(evaluated_run: Path, to: Path) -> Path:
    """The run with two pictures in place of its figures."""
    ignored = shutil.ignore_patterns("figures", "checkpoints", "report.html")
    copied = Path(shutil.copytree(evaluated_run, to, ignore=ignored))
    write_picture(copied / "figures" / "training_curves.png")
    write_picture(copied / "figures" / "multiscale_T-1_GENE1.png")
    return copied


@pytest.fixture
def run(evaluated_run: Path, tmp_path: Path) -> Path:
    """A run for a test to change."""
    return copy_run(evaluated_run, tmp_path / "run")


class Page(HTMLParser):
    """What a browser would make of the page: text of elements, images, data by id."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text("utf-8")
        self.open: list[str] = []
        self.data: dict[str, str] = {}
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self._id: str | None = None
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self._id = attributes.get("id") if tag == "script" else None
        self.links += [v for k, v in attrs if k in ("src", "href") and v is not None]
        if tag == "img":
            self.images.append(attributes)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag not in ("img", "br", "meta", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("img", "br", "meta", "link", "input"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._id is not None and self.open[-1] == "script":
            self.data[self._id] = self.data.get(self._id, "") + data
        elif "script" not in self.open and "style" not in self.open:
            self.words.append(data)
            if {"td", "th"} & set(self.open) and self.rows:
                self.rows[-1][-1] += data

    def json(self, name: str) -> Any:
        return json.loads(self.data[name])

    def says(self, words: str) -> bool:
        return words in " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def reported(evaluated_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report; read only."""
    run = copy_run(evaluated_run, tmp_path_factory.mktemp("reported") / "run")
    write_report(run)
    return run


@pytest.fixture(scope="module")
def page(reported: Path) -> Page:
    return Page(reported / "report.html")


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


# --- figures -----------------------------------------------------------------------------------


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


# --- what it says of the run -------------------------------------------------------------------


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


# --- hostile and damaged input -----------------------------------------------------------------


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
        ("split.json", "split.json: (not found; train anew|cannot be read)"),
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
        (r"(?m),[^,]*$", "", "column 'morans_i_residual' is missing"),
        (r"(?s)(,8,[^,]*),.*", r"\1", "line 4: expected 24 fields; got 4"),
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


# --- the vendored viewer -----------------------------------------------------------------------


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

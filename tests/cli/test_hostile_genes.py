"""Hostile names of genes, patients and slides in every file that is shared.

`test_hostile_names.py` says where files lie; this says what is in them.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import h5py
import numpy as np
import pytest
import spatialdata
from cli_place import Vst
from tiny_store import write_store

import virchow_st
from virchow_st.names import csv_name
from virchow_st.output.figures import style

# Name → why somebody would give it.
HOSTILE = {
    "../../up": "a path out of the folder",
    "/etc/passwd": "an absolute path",
    "a\\b": "a path on Windows",
    ".": "this folder, in HDF5 too",
    "..": "the folder above",
    "zarr.json": "a file of the format's own",
    "con": "a device on Windows",
    "=cmd|' /C calc'!A0": "a formula",
    "+1": "a formula",
    "-2+3": "a formula",
    "@SUM(A1)": "a formula",
    "＝1+1": "a formula in East Asian editions",
    "'=1": "a formula that was quoted before",
    "<img src=x onerror=alert(1)>": "HTML",
    "</script><script>alert(1)</script>": "the end of a script",
    '"quoted", comma; semicolon': "separators of tables",
    "$(touch x) `touch x` %s {0}": "a shell, and templates of texts",
    "[x](javascript:alert(1)) | *": "Markdown",
    "g" * 3000: "longer than a file name, a line or a page",
    "ΠΙΓΡ 患者 𝒢 é": "letters of the world",
    "": "no symbol",
    "TWICE": "a symbol of two genes",
    "TWICE (ENSG00023)": "what is made of a symbol of two genes",
}
SYMBOLS = [*HOSTILE, "TWICE"]  # the genes of ids ENSG00000 and so on; TWICE is 21 and 23
assert SYMBOLS.index("TWICE") == 21
assert len(SYMBOLS) == 24
IDS = [f"ENSG{g:05d}" for g in range(len(SYMBOLS))]
IDS[0], IDS[1], IDS[2] = "=1+1", "<b>id</b>", "../id"
PATIENT, SLIDE = "=HYPERLINK(1)/<i>..", "<i>T</i>/../..'"


class Made(NamedTuple):
    """What was made of two stores with hostile names."""

    folder: Path
    files: dict[str, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    from virchow_st_cli.main import run

    folder = tmp_path_factory.mktemp("hostile")
    genes = {"id": IDS, "symbol": SYMBOLS, "total": [1000] * len(IDS)}
    stores = [folder / "A.vst", folder / "T.vst"]
    for seed, (store, patient) in enumerate(zip(stores, ("A", PATIENT), strict=True)):
        about = {"slide": SLIDE, "genes": genes}
        write_store(store, patient, 4, seed=seed, n_genes=len(IDS), dim=4, rate=0.1, **about)
    square = [[x, y] for x, y in ((9, 9), (90, 9), (90, 90), (9, 90), (9, 9))]
    cell = {
        "type": "Feature", "geometry": {"type": "Polygon", "coordinates": [square]},
        "properties": {"classification": {"name": "=cmd/../<b>"}},
    }  # fmt: skip
    cells = folder / "cells.geojson"
    cells.write_text(json.dumps([cell]))
    trained, field = folder / "run", folder / "field.zarr"
    cpu = ["--device", "cpu"]
    commands: list[list[Any]] = [
        ["train", *stores, "--run", trained, "--test-patient", PATIENT, "--decoder", "linear",
         "--panel", f"top:{len(IDS)}", "--epochs", 1, *cpu],
        ["evaluate", trained, *cpu],
        ["denoise", stores[1], "--out", field, "--factors", 2],
        ["push", trained, folder / "model", "--license", "mit"],
    ]  # fmt: skip
    files = {"run": trained, "field": field, "model": folder / "model"}
    for name in ("spatialdata", "ome-zarr", "h5ad", "npz"):
        how = ["--out", folder / f"run.{name}", "--format", name]
        commands.append(["export", trained, *how])
        files[name] = folder / f"run.{name}"
    for end in ("h5ad", "zarr"):
        out = folder / f"cells.{end}"
        commands.append(["cells", trained, "--cells", cells, "--out", out])
        files[f"cells.{end}"] = out
    for command in commands:
        assert run([str(part) for part in command]) == 0, command
    (trained / "figures").mkdir()  # a report with a picture draws no others
    draw(trained / "figures" / "genes")
    assert run(["report", str(trained)]) == 0
    return Made(folder, files)


def draw(stem: Path) -> str:
    """A figure with every name in an inch; what was left of the longest."""
    figure = style.new_figure(3)
    for symbol in SYMBOLS:
        last = style.fit(style.write(figure, 0.1, 0.1, symbol), 1.0)
        assert style.size_in(last)[0] <= 1.0
    long = style.fit(style.write(figure, 0.1, 0.1, "g" * 3000), 1.0)
    style.save(figure, stem, ("png",))
    return str(long.get_text())


SYMBOL_OF = dict(zip(IDS, SYMBOLS, strict=True))
# What genes are called: unique, and the symbol where it is one gene's alone.
LABEL_OF = {id: symbol or id for id, symbol in SYMBOL_OF.items()} | {
    "ENSG00021": "TWICE (ENSG00021)",
    "ENSG00022": "TWICE (ENSG00023) (ENSG00022)",
    "ENSG00023": "TWICE (ENSG00023) (ENSG00023)",
}


@pytest.mark.parametrize("which", ["h5ad", "cells.h5ad"])
def test_anndata_has_the_names_as_they_are(made: Made, which: str) -> None:
    read = anndata.read_h5ad(made.files[which])
    assert dict(zip(read.var["gene_id"], read.var["symbol"], strict=True)) == SYMBOL_OF
    assert dict(zip(read.var["gene_id"], read.var_names, strict=True)) == LABEL_OF
    (library,) = read.uns["spatial"]
    assert library == "=HYPERLINK(1)_<i>.."
    assert read.uns["spatial"][library]["images"]["hires"].ndim == 3


def test_cells_keep_patient_slide_and_class(made: Made) -> None:
    obs = anndata.read_h5ad(made.files["cells.h5ad"]).obs
    cell = obs[["patient", "slide", "class"]].iloc[0]
    assert tuple(cell) == (PATIENT, PATIENT, "=cmd/../<b>")  # a patient of one slide names it


def test_npz_has_the_names_and_no_pickle(made: Made) -> None:
    with np.load(made.files["npz"], allow_pickle=False) as read:
        pairs = zip(read["gene_id"].tolist(), read["gene_symbol"].tolist(), strict=True)
        assert dict(pairs) == SYMBOL_OF
    with zipfile.ZipFile(made.files["npz"]) as archive:
        assert all(re.fullmatch(r"\w+\.npy", name) for name in archive.namelist())


@pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning")
@pytest.mark.parametrize("which", ["spatialdata", "cells.zarr"])
def test_spatialdata_has_the_names_as_they_are(made: Made, which: str) -> None:
    read = spatialdata.read_zarr(made.files[which])
    if which == "spatialdata":
        channels = spatialdata.models.get_channel_names(read.images["rates_2um"])
        assert sorted(channels) == sorted(LABEL_OF.values())
    else:
        assert sorted(read.tables["table"].var["symbol"]) == sorted(SYMBOLS)


def test_a_field_finds_a_gene_by_its_label(made: Made) -> None:
    field = virchow_st.open_field(made.files["field"])
    assert sorted(field.symbols) == sorted(SYMBOLS)
    for symbol in ("../../up", "=cmd|' /C calc'!A0", "zarr.json", "g" * 3000):
        assert field.gene(symbol).shape == field.shape


@pytest.mark.parametrize("which", ["spatialdata", "ome-zarr", "field", "cells.zarr"])
def test_no_name_is_a_path_within_a_folder(made: Made, which: str) -> None:
    """Every file and folder is one of the format's own: letters, digits, dots and dashes."""
    names = {part for p in made.files[which].rglob("*") for part in p.parts}
    root = set(made.files[which].parts)
    assert [name for name in names - root if not re.fullmatch(r"\.?[\w.-]{1,40}", name)] == []
    assert not {"con", "passwd", "up", "TWICE"} & names


def tables(folder: Path) -> Iterator[tuple[Path, list[list[str]]]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".csv", ".tsv") and path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                yield path, list(csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def test_no_table_of_a_run_or_a_shared_model_holds_a_formula(made: Made) -> None:
    """Excel, LibreOffice and Sheets compute a cell that begins with one of these."""
    found = [*tables(made.files["run"]), *tables(made.files["model"])]
    assert {"panel.tsv", "per_gene.csv"} <= {path.name for path, _ in found}
    for path, rows in found:
        texts = [cell for row in rows for cell in row if not is_number(cell)]
        assert [text for text in texts if text[:1] in tuple("=+-@\t\r\n＝＋－＠")] == [], path
        if path.name == "panel.tsv":
            assert sorted(csv_name(row[1]) for row in rows[1:]) == sorted(SYMBOLS)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class Tags(HTMLParser):
    """Collects tags that a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.orders: list[str] = []
        self.images: list[str | None] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.images += [dict(attrs).get("src")] if tag == "img" else []
        self.orders += [f"{name}={value}" for name, value in attrs if name.startswith("on")]
        self.orders += [value for _, value in attrs if value and value.startswith("javascript:")]

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script":
            self.scripts.append(data)


def test_a_report_runs_nothing_that_a_name_says(made: Made) -> None:
    (path,) = made.files["run"].glob("*.html")
    page = Tags()
    page.feed(path.read_text("utf-8"))
    assert page.orders == []
    assert "x" not in page.images
    assert [text for text in page.scripts if len(text) < 100 and "alert" in text] == []
    assert "g" * 3000 in path.read_text("utf-8")  # so names are in it
    assert "</script><script>" not in path.read_text("utf-8")


def test_a_figure_takes_any_name_without_a_warning(tmp_path: Path) -> None:
    """Warnings are errors here: letters that no font has are drawn as boxes."""
    assert draw(tmp_path / "names").count("…") == 1
    assert (tmp_path / "names.png").is_file()


def test_a_model_card_is_text(made: Made) -> None:
    card = (made.files["model"] / "README.md").read_text("utf-8")
    prose = re.sub(r"`[^`]*`|\\.", "", card)
    assert not re.search(r"<(img|script|b|i)\b", prose)
    assert "](javascript:" not in prose
    assert PATIENT not in card


def test_every_shared_file_is_silent_about_this_machine(made: Made) -> None:
    """A run itself names its stores, which the next command opens; what is pushed does not."""
    secret = str(made.folder).encode()
    for which, path in made.files.items():
        if which == "run":
            continue
        for file in [path, *path.rglob("*")]:
            assert not file.is_file() or secret not in file.read_bytes(), (which, file)
    for store in made.folder.glob("*.vst"):
        assert secret not in (store / "store.json").read_bytes()


@pytest.mark.parametrize("name", ["a\nb", "E\x1b[31mSC", "\t=1", "\u202egnp"])
def test_a_matrix_with_names_that_no_store_takes_is_refused_at_once(
    vst: Vst, simulated: Path, tmp_path: Path, name: str
) -> None:
    """Before the encoder runs: the store of such a slide could not be read."""
    slide = shutil.copytree(simulated / "P1", tmp_path / "P1")
    (path,) = slide.rglob("square_002um/filtered_feature_bc_matrix.h5")
    with h5py.File(path, "r+") as file:
        names = file["matrix/features/name"][:].tolist()
        names[3] = name.encode()
        del file["matrix/features/name"]
        file["matrix/features/name"] = np.array(names, "S")
    answer = vst(
        "extract", slide / "outs", "--image", slide / "tissue_image.tif", "--store",
        tmp_path / "P1.vst", "--patient", "P1", "--encoder", "stain",
    )  # fmt: skip
    assert answer.code == 2
    assert f"{path}: features: expected ids and names of genes without control" in answer.err
    assert not (tmp_path / "P1.vst").exists()

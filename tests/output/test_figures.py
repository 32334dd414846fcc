"""``vst figures`` as a whole: which figures, their names, and that all or none are written."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import matplotlib
import numpy as np
import pytest
from figure_run import FigureRun, all_pictures, history_line
from matplotlib.figure import Figure
from matplotlib.text import Text

from virchow_st.errors import ConfigError
from virchow_st.output.figures import draw, draw_figures
from virchow_st.output.figures.choice import chosen_genes, strongest_genes
from virchow_st.output.figures.numbers import NumbersFile
from virchow_st.output.figures.style import Picture, new_figure, styled
from virchow_st.run.evaluated import read_results
from virchow_st.run.lock import RunLock
from virchow_st.run.maps import open_maps
from virchow_st.run.results import read_per_gene

Pictures = dict[str, list[Picture]]


@pytest.fixture
def broken(drawn_run: Path, tmp_path: Path) -> Path:
    """A copy of the run for a test to damage."""
    return Path(shutil.copytree(drawn_run, tmp_path / "run"))


@pytest.fixture
def three_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of all pictures, a picture of one page, one of none and one of two, all empty."""

    def pictures(*_: object) -> Iterator[tuple[str, list[Picture]]]:
        yield "genes_of_P_5", [Picture(new_figure(1), {"pcc": 0.5, "none": float("nan")})]
        yield "mosaic", []
        yield "patches", [Picture(new_figure(1), {"page": np.int64(n)}) for n in (1, 2)]

    monkeypatch.setattr(draw, "pictures", pictures)


FILES = ("genes_of_P_5", "patches", "patches_2")


@pytest.mark.usefixtures("three_pages")
def test_pages_become_files_with_their_numbers_beside_them(broken: Path) -> None:
    before = dict(matplotlib.rcParams)
    paths = draw_figures(broken)
    assert dict(matplotlib.rcParams) == before
    folder = broken / "figures"
    assert paths == [folder / f"{name}.{kind}" for name in FILES for kind in ("png", "pdf")]
    assert {path.name for path in folder.iterdir()} == {
        *(path.name for path in paths), "visualization_metrics.json",
    }  # fmt: skip
    content = json.loads((folder / "visualization_metrics.json").read_text("utf-8"))
    assert content["format"] == "virchow_st.visualization_metrics/1"
    expected = zip(FILES, ({"pcc": 0.5, "none": None}, {"page": 1}, {"page": 2}), strict=True)
    assert content["figures"] == dict(expected)
    first = [path.read_bytes() for path in paths]
    draw_figures(broken)
    assert [path.read_bytes() for path in paths] == first


@pytest.mark.usefixtures("three_pages")
@pytest.mark.parametrize("drawn_before", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_figures_come_together_or_not_at_all(
    broken: Path, monkeypatch: pytest.MonkeyPatch, drawn_before: bool, error: BaseException
) -> None:
    """A report embeds what it finds: half of a set would be taken for all of it."""
    if drawn_before:
        draw_figures(broken)
        (broken / "figures" / f"{FILES[0]}.png").write_bytes(b"an earlier one")
    before = {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()}
    savefig, calls = Figure.savefig, []

    def fail(self: Figure, path: Path, **options: Any) -> None:
        calls.append(path)
        if len(calls) == 4:  # the PDF of the second picture, half written
            Path(path).write_bytes(b"%PDF-1.4 half")
            raise error
        savefig(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(type(error)):
        draw_figures(broken)
    assert {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()} == before
    assert (broken / "figures").exists() == drawn_before


@pytest.mark.usefixtures("three_pages")
def test_figures_of_a_process_killed_between_renames_are_put_in_place(broken: Path) -> None:
    paths = draw_figures(broken)
    folder = broken / "figures"
    ready = folder / ".results.ready"
    ready.mkdir()
    for name in (paths[-1].name, "visualization_metrics.json"):  # the last of the renames
        (folder / name).rename(ready / name)
    with RunLock() as lock:
        lock.take(broken)
        assert all(path.is_file() for path in paths)
        assert not ready.exists()


@pytest.mark.usefixtures("three_pages")
def test_numbers_stay_until_their_picture_goes_or_the_run_is_evaluated_anew(broken: Path) -> None:
    draw_figures(broken)
    path = broken / "figures" / "visualization_metrics.json"
    assert tuple(NumbersFile(path, broken).content["figures"]) == FILES
    (path.parent / "patches.png").unlink()
    assert tuple(NumbersFile(path, broken).content["figures"]) == (FILES[0], FILES[2])
    metrics = broken / "metrics.json"
    metrics.write_bytes(metrics.read_bytes() + b"\n")
    assert NumbersFile(path, broken).content["figures"] == {}
    path.write_text("[1")  # not ours
    assert NumbersFile(path, broken).content["figures"] == {}


# --- what is printed -------------------------------------------------------------------------


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for item in value.values():
            yield from numbers_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from numbers_in(item)
    elif isinstance(value, int | float) and np.isfinite(value):
        yield float(value)


def test_every_number_printed_in_a_picture_is_in_the_file(pictures: Pictures) -> None:
    seen = 0
    for name, pages in pictures.items():
        for picture in pages:
            known = list(numbers_in(picture.numbers))
            forms = {f"{round(x, 2) + 0.0:.2f}".replace("-", "−") for x in known}
            forms |= {f"{x:,.0f}" for x in known}
            forms |= {f"{x:.{n}%}".replace("%", " %") for x in known for n in (0, 1)}
            written = [*picture.figure.texts, *(t for a in picture.figure.axes for t in a.texts)]
            for text in (t.get_text() for t in written):
                found = re.findall(r"−?\d+\.\d\d\b|\d{1,3}(?:,\d{3})+|[\d.]+ %(?! interval)", text)
                assert set(found) <= forms, (name, text)
                seen += len(found)
    assert seen > 60


def drawn_texts(figure: Figure) -> Iterator[Text]:
    """The texts that show: not those of ticks outside of their axes."""
    ticks: set[Text] = set()
    shown: set[Text] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            ticks |= set(axis.get_ticklabels())
            shown |= {tick.label1 for tick in axis._update_ticks()}
    for text in figure.findobj(Text):
        if text.get_text().strip() and text.get_visible() and (text not in ticks or text in shown):
            yield text


def check_room(name: str, picture: Picture) -> None:
    """Every text lies on the page, and none on another."""
    styled(picture.figure.draw_without_rendering)()
    page = picture.figure.bbox
    boxes = [(text.get_text(), text.get_window_extent()) for text in drawn_texts(picture.figure)]
    assert len(boxes) > 8
    for i, (text, box) in enumerate(boxes):
        assert page.x0 <= box.x0 <= box.x1 <= page.x1, (name, text)
        assert page.y0 <= box.y0 <= box.y1 <= page.y1, (name, text)
        for other, other_box in boxes[i + 1 :]:
            both = box.intersection(box, other_box)
            # Boxes hold room for letters that hang down: 2 px of it may touch.
            assert both is None or min(both.width, both.height) <= 2, (name, text, other)


def test_no_text_lies_on_another_or_off_the_page(pictures: Pictures) -> None:
    for name, pages in pictures.items():
        for picture in pages:
            check_room(name, picture)


LONG = "AC0123456789.1-ENSG00000123456-readthrough-antisense-RNA-12"
NAMES: dict[str, dict[str, Any]] = {
    "long": {"symbols": (LONG, "SAA2", "SAA2", f"{LONG}-B"), "means": (0.15, 0.05, 0.4, 0.02),
             "patient": "patient-of-the-twelfth-hospital-2024-0012"},
    "one": {"symbols": ("EPCAM",), "means": (0.1,)},
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_nor_where_names_are_long_or_there_is_but_one_gene_and_patch(
    case: str, tmp_path: Path
) -> None:
    lattice = [(0, 0), (0, 1)] if case == "long" else [(0, 0)]
    run = FigureRun(**NAMES[case], lattice=lattice).write(tmp_path / LONG)
    other = FigureRun(**NAMES[case], lattice=lattice, skill=0.5).write(tmp_path / f"{LONG}-2")
    for name, pages in all_pictures(run, other, n_genes=2).items():
        for picture in pages:
            check_room(name, picture)


def test_slides_of_one_patient_are_told_apart(tmp_path: Path) -> None:
    case = FigureRun(lattice=[(0, 0), (0, 1)], symbols=["EPCAM"], means=[0.1])
    run = case.write(tmp_path / "run")
    (first,) = (run / "maps").iterdir()
    shutil.copy(first, run / "maps" / "P5-3.h5")
    first.rename(run / "maps" / "P5-2.h5")
    results = read_results(run)
    with open_maps(run / "maps" / "P5-2.h5") as a, open_maps(run / "maps" / "P5-3.h5") as b:
        drawn = dict(draw.pictures(results, a.genes, [a, b], [], None))
    assert list(drawn)[:6] == [
        "multiscale_P5-2_EPCAM", "mosaic_P5-2_EPCAM", "patches_P5-2",
        "multiscale_P5-3_EPCAM", "mosaic_P5-3_EPCAM", "patches_P5-3",
    ]  # fmt: skip
    for name in list(drawn)[3:6]:
        texts = [text.get_text() for text in drawn[name][0].figure.texts]
        assert "patient P5, slide P5-3" in texts
    # Both slides are in the calibration.
    assert drawn["calibration"][0].numbers["scales"]["2"]["n_bins"] == 2 * case.mask.sum()


# --- genes -----------------------------------------------------------------------------------


def test_without_names_the_strongest_genes_are_drawn(drawn_run: Path) -> None:
    scores = read_per_gene(drawn_run)
    products = {s.gene.symbol: s.pcc * s.mean for s in scores if s.scale_um == 8}
    best = sorted((p for p in products if products[p] == products[p]), key=lambda p: -products[p])
    assert (
        [g.symbol for g in strongest_genes(read_results(drawn_run))]
        == best[:3]
        == ["HLA-A", "EPCAM", "PIGR"]
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("epcam", r"--genes: the run's panel: has no gene 'epcam'; did you mean EPCAM"),
        ("EPCAN", r"did you mean EPCAM"),
        ("XYZ", r"check the spelling in its gene list"),
        ("SAA2", r"'SAA2' belongs to ENSG0003, ENSG0004; give one of these"),
        ("PIGR", r"'PIGR' is given twice"),
    ],
)
def test_genes_that_cannot_be_drawn_are_refused(drawn_run: Path, name: str, message: str) -> None:
    results = read_results(drawn_run)
    with pytest.raises(ConfigError, match=message):
        chosen_genes(results, ["PIGR", name])
    with pytest.raises(ConfigError, match="--genes: expected symbols or ids .* got none"):
        chosen_genes(results, [])


# --- files that are missing or damaged -------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("maps", "vst evaluate"),
        ("metrics.json", "vst evaluate"),
        ("per_gene.csv", "vst evaluate"),
        ("overview.h5", "vst evaluate"),
        ("blocks.npz", "vst evaluate"),
        ("history.jsonl", "vst train"),
    ],
)
def test_a_missing_file_names_the_command_that_writes_it(
    broken: Path, name: str, command: str
) -> None:
    path = broken / name
    path.rename(broken / "elsewhere")
    with pytest.raises(ConfigError, match=rf"{name}: .*; run `{command}[^`]*` first"):
        draw_figures(broken)
    assert not (broken / "figures").exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        draw_figures(tmp_path / "run")


def _no_format(run: Path) -> None:
    with h5py.File(run / "maps" / "P5.h5", "a") as f:
        f.attrs["format"] = "virchow_st.maps/9"


def _without(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        with h5py.File(run / "maps" / "P5.h5", "a") as f:
            del f[name]

    return damage


def _other_image(run: Path) -> None:
    with h5py.File(run / "maps" / "P5.h5", "a") as f:
        del f["image"]
        f["image"] = np.zeros((4, 4, 3), np.uint8)


def _no_hdf5(run: Path) -> None:
    (run / "maps" / "P5.h5").write_bytes(b"no")


def _other_overview(run: Path) -> None:
    with h5py.File(run / "overview.h5", "a") as f:
        f["1"].attrs["um_per_px"] = 2


def _torn_history(run: Path) -> None:
    path = run / "history.jsonl"
    path.write_text(path.read_text() + history_line(19)[:-40])


def _no_column(run: Path) -> None:
    path = run / "per_gene.csv"
    path.write_text(path.read_text().replace("pcc_ceiling,", "ceiling,"))


def _no_line(run: Path) -> None:
    path = run / "per_gene.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("ENSG0002,HLA-A,8,")))


def _other_metrics(run: Path) -> None:
    (run / "metrics.json").write_text('{"format": "x"}')


def _half_the_lines(run: Path) -> None:
    path = run / "per_gene.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:13]))  # the head, and three genes of six


def _half_the_bytes(run: Path) -> None:
    path = run / "per_gene.csv"
    path.write_text(path.read_text()[: path.stat().st_size // 2])


def _other_genes(run: Path) -> None:
    path = run / "per_gene.csv"
    path.write_text(path.read_text().replace("ENSG", "ENSMUSG"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            _no_format,
            r"P5.h5: expected format 'virchow_st.maps/1'; got 'virchow_st.maps/9'",
        ),
        (_without("scored_mask"), r"P5.h5: incomplete .*scored_mask"),
        (_without("patch_row0"), r"P5.h5: incomplete .*patch_row0.*run `vst evaluate` again"),
        (_other_image, r"P5.h5: incomplete .*image: expected .* got \(4, 4, 3\)"),
        (_no_hdf5, r"P5.h5: cannot be read as HDF5"),
        (_other_overview, r"overview.h5: incomplete .*image: expected shape"),
        (_torn_history, r"history.jsonl: line 19: "),
        (_no_column, r"per_gene.csv: column 'pcc_ceiling' is missing"),
        (_no_line, r"per_gene.csv: gene ENSG0002: expected a line for each of 2, 4, 8, 16 µm; got"),
        (_other_metrics, r"metrics.json: format: expected 'virchow_st.metrics/1'; got 'x'"),
        (_other_genes, r"(blocks.npz: expected the 6 genes|: gene ENSMUSG\d* of per_gene.csv)"),
        (_half_the_lines, r"per_gene.csv: expected the 6 genes of metrics.json; got others"),
        (_half_the_bytes, r"per_gene.csv: line \d+: expected 27 fields; got"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(
    broken: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(broken)
    with pytest.raises(ConfigError, match=message) as error:
        draw_figures(broken)
    assert "\n" not in str(error.value)
    assert not (broken / "figures").exists()

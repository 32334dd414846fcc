"""Cells in the report: what the page holds of them, and what the browser makes of it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, pixels, resize
from cell_files import write_geojson, write_mappings
from factor_run import N_FACTORS, Added, add_factors
from report_page import Page
from report_run import HOSTILE, write_picture

from virchow_st.errors import ConfigError, SlideError
from virchow_st.output import report
from virchow_st.output.figures.cells import read_slide_cells
from virchow_st.output.report.cells import write_cells_data
from virchow_st.output.report.codes import decode_factor, unpack
from virchow_st.run.evaluated import read_results
from virchow_st.run.maps import SlideResult, open_maps
from virchow_st.runtime.progress import SILENT
from virchow_st.slide.cells.cell_map import CellMap

SIDE, PITCH = 9, 12


@dataclass
class Reported:
    """A run with its report, its cells as a file, and their labels on the slide's bins."""

    run: Path
    cells: Path
    labels: np.ndarray
    added: Added | None

    @property
    def slide(self) -> Any:
        return open_maps(read_results(self.run).maps[0])

    def sums(self, layers: np.ndarray, slide: SlideResult) -> np.ndarray:
        """(n, K) sums of maps (K, R, C) over the scored bins of each cell."""
        of = np.where(slide.scored_mask, self.labels, 0).ravel()
        n = int(self.labels.max())
        return np.array([np.bincount(of, np.nan_to_num(m).ravel(), n + 1)[1:] for m in layers]).T


def copied(tiny_run: Path, to: Path) -> Path:
    ignored = shutil.ignore_patterns("figures", "checkpoints", "report.html")
    run = Path(shutil.copytree(tiny_run, to, ignore=ignored))
    write_picture(run / "figures" / "training_curves.png")
    return run


def planted(slide: SlideResult) -> np.ndarray:
    """Cells of 9 × 9 bins with one corner cut off, 12 apart, one in five left out."""
    rows, cols = slide.scored_mask.shape
    labels = np.zeros((rows, cols), np.int32)
    number = 0
    for n, (row, col) in enumerate(np.ndindex(rows // PITCH, cols // PITCH)):
        if n % 5 == 3:
            continue
        number += 1
        square = labels[row * PITCH : row * PITCH + SIDE, col * PITCH : col * PITCH + SIDE]
        square[:] = number
        square[:3, :3] = 0
    return labels


@pytest.fixture(scope="module")
def by_factors(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """A run with factors on a mirrored and tilted slide, with Space Ranger's table of bins."""
    run = copied(tiny_run, tmp_path_factory.mktemp("factors") / "run")
    added = add_factors(run)
    with open_maps(read_results(run).maps[0]) as slide:
        labels = planted(slide)
        cells = write_mappings(run.parent / "outs" / "barcode_mappings.parquet", labels, slide)
    report.write_report(run, cells=cells.parent)
    return Reported(run, cells, labels, added)


@pytest.fixture(scope="module")
def by_genes(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """A run of a panel, with polygons whose class tries to break the page."""
    run = copied(tiny_run, tmp_path_factory.mktemp("genes") / "run")
    with open_maps(read_results(run).maps[0]) as slide:
        labels = planted(slide)
        mappings = write_mappings(run.parent / "barcode_mappings.parquet", labels, slide)
        found = read_slide_cells(mappings, slide)
        px = np.array(bins_px(found))
    cells = write_geojson(
        run.parent / "c.geojson", px, classification=lambda i: {"name": HOSTILE if i % 2 else "a"}
    )
    report.write_report(run, cells=cells)
    return Reported(run, cells, labels, None)


def bins_px(cells: CellMap) -> Any:
    """The outlines of bins in full-resolution px."""
    import shapely

    from virchow_st.slide.cells.cell_map import bin_outlines

    return shapely.transform(bin_outlines(cells), cells.lattice.to_px)


# --- the data -----------------------------------------------------------------------------------


def numbers(page: Page, name: str) -> np.ndarray:
    planes = unpack(page.data[name]).reshape(4, -1).astype(np.int64)
    return planes[0] + 256 * planes[1] + 65536 * planes[2] + 2**24 * planes[3]


def signed(page: Page, name: str) -> np.ndarray:
    found = numbers(page, name)
    return np.cumsum(np.where(found % 2, -(found + 1) // 2, found // 2))


def steps(page: Page, name: str) -> np.ndarray:
    return np.cumsum(unpack(page.data[name]), dtype=np.uint64).astype(np.uint8)


def bound(values: np.ndarray, top: float) -> np.ndarray:
    """Half a step at each value."""
    return top * (np.sqrt(values / top) / 255 + 4e-6)


@pytest.mark.parametrize("kind", ["by_factors", "by_genes"])
def test_the_page_holds_every_cell_and_its_values(
    kind: str, request: pytest.FixtureRequest
) -> None:
    made: Reported = request.getfixturevalue(kind)
    page = Page(made.run / "report.html")
    about = page.json("cells")
    labels = np.zeros((about["rows"], about["cols"]), int)
    parts = [signed(page, f"cell-run-{name}") for name in ("cell", "row", "col")]
    for cell, row, col, n in zip(*parts, numbers(page, "cell-run-length"), strict=True):
        assert not labels[row, col : col + n].any()
        labels[row, col : col + n] = cell + 1
    np.testing.assert_array_equal(labels, made.labels)
    names = json.loads(unpack(page.data["cell-names"]).tobytes())
    assert len(names) == about["n"] == made.labels.max()
    assert names[1] == ("cellid_000000002-1" if made.added else "c1")

    genes = page.json("gene-data")["genes"]
    with made.slide as slide:
        n_bins = made.sums(np.ones((1, *labels.shape)), slide)[:, 0]
        assert (numbers(page, "cell-bins") == n_bins).all()
        assert (n_bins == 0).any()
        for entry in about["genes"]:
            (gene,) = (g for g in slide.genes if g.id == genes[entry["gene"]]["id"])
            rate, counts = slide.layers(gene)
            observed = made.sums(counts[None], slide)[:, 0]
            assert (numbers(page, f"cell-observed-{entry['gene']}") == observed).all()
            if made.added is None:
                true = made.sums(rate[None], slide)[:, 0] / np.maximum(n_bins, 1)
                codes = steps(page, f"cell-predicted-{entry['gene']}")
                error = np.abs(decode_factor(codes, entry["top"]) - true)
                assert (error <= 1.01 * bound(true, entry["top"])).all()
        assert len(about["genes"]) == len(genes)
        if made.added is not None:
            true = made.sums(made.added.maps[slide.name], slide) / np.maximum(n_bins, 1)[:, None]
            for k, top in enumerate(about["tops"]):
                found = decode_factor(steps(page, f"cell-factor-{k}"), top)
                # Factors on disk have ten binary digits.
                most = bound(true[:, k], top) + 2**-11 * true[:, k]
                assert (np.abs(found - true[:, k]) <= 1.01 * most).all()


def test_genes_that_do_not_fit_are_left_out_and_too_many_cells_refused(
    by_factors: Reported,
) -> None:
    results = read_results(by_factors.run)
    with by_factors.slide as slide:
        cells = read_slide_cells(by_factors.cells, slide)
        genes = slide.genes
    written: list[str] = []
    write_cells_data(written.append, results, cells, genes, 10**6, SILENT)
    sizes = [len(text) for text in written if 'id="cell-observed-' in text]
    before = sum(map(len, written[: -1 - len(sizes)]))
    fewer: list[str] = []
    write_cells_data(fewer.append, results, cells, genes, before + sizes[0], SILENT)
    assert 0 < sum('id="cell-observed-' in text for text in fewer) < len(genes)
    with pytest.raises(ConfigError, match=r"--cells: expected cells that take at most 0 MB .* got"):
        write_cells_data(written.append, results, cells, genes, 100, SILENT)


def test_refused_cells_leave_the_report_as_it_is(
    by_factors: Reported, evaluated_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (by_factors.run / "report.html").read_bytes()
    with pytest.raises(SlideError, match=r"nowhere\.geojson: not found"):
        report.write_report(by_factors.run, cells=tmp_path / "nowhere.geojson")
    monkeypatch.setattr(report, "CELLS_BYTES", 100)
    with pytest.raises(ConfigError, match="give those of a part of the slide"):
        report.write_report(by_factors.run, cells=by_factors.cells)
    assert (by_factors.run / "report.html").read_bytes() == before
    with pytest.raises(ConfigError, match=r"the run has 2; leave out --cells"):
        report.write_report(copied(evaluated_run, tmp_path / "two"), cells=by_factors.cells)


def test_a_report_without_cells_has_no_such_section(by_genes: Reported, tmp_path: Path) -> None:
    run = Path(shutil.copytree(by_genes.run, tmp_path / "run"))
    page = report.write_report(run).read_text("utf-8")
    assert "cells-section" not in page
    assert 'id="palette"' not in page


# --- in the browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens the cells of a report; nothing may have complained at the end."""

    def open_(made: Reported) -> Any:
        resize(browser, 1280, 900)
        browser.get("about:blank")
        browser.get((made.run / "report.html").as_uri())
        browser.execute_script("document.getElementById('cells-section').scrollIntoView()")
        until(browser, "cells.pictures.length > 0 && $('cells-status').textContent === ''")
        until(
            browser, "placeOfCells() !== null && cells.viewer.world.getItemAt(0).getFullyLoaded()"
        )
        return browser

    yield open_
    assert browser.get_log("browser") == []


def until(page: Any, expression: str) -> None:
    for _ in range(600):
        if page.execute_script(f"return {expression}"):
            return
        time.sleep(0.05)
    pytest.fail(f"the page did not get there in 30 s: {expression}")


def find(page: Any, css: str) -> Any:
    return page.find_element("css selector", css)


def at_rest(page: Any) -> None:
    springs = "['zoomSpring', 'centerSpringX', 'centerSpringY']"
    until(page, f"{springs}.every((x) => cells.viewer.viewport[x].isAtTargetValue())")
    page.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
    )


def middle(labels: np.ndarray, cell: int) -> tuple[int, int]:
    """A bin in a cell, from 0, that is in its middle."""
    rows, cols = np.nonzero(labels == cell + 1)
    return int(rows[len(rows) // 2]), int(cols[len(cols) // 2])


def seen_at(page: Any, row: float, col: float) -> tuple[float, float]:
    """Where a bin's middle lies in the viewer, px."""
    place = page.execute_script("return placeOfCells()")
    return place["x"] + (col + 0.5) * place["side"], place["y"] + (row + 0.5) * place["side"]


def move_to(page: Any, row: float, col: float, click: bool = False) -> None:
    from selenium.webdriver import ActionChains

    osd = find(page, "#cells-osd")
    x, y = seen_at(page, row, col)
    size = osd.size
    actions = ActionChains(page).move_to_element_with_offset(
        osd, round(x - size["width"] / 2), round(y - size["height"] / 2)
    )
    (actions.click() if click else actions).perform()


def type_gene(page: Any, label: str) -> np.ndarray:
    box = find(page, "#cells-gene")
    page.execute_script("arguments[0].value = ''", box)
    box.send_keys(label)
    until(page, f"$('cells-unit').textContent.endsWith({json.dumps(' of ' + label)})")
    return np.array(page.execute_script("return Array.from(cells.predicted)"))


def test_any_gene_is_computed_and_painted_where_its_cells_lie(
    by_factors: Reported, opened: Any
) -> None:
    page = opened(by_factors)
    added = by_factors.added
    assert added is not None
    values = type_gene(page, added.genes.symbols[11])
    with by_factors.slide as slide:
        n_bins = by_factors.sums(np.ones((1, *by_factors.labels.shape)), slide)[:, 0]
        sums = by_factors.sums(added.maps[slide.name], slide)
    true = (sums @ added.loadings[11].astype(np.float64)) / np.maximum(n_bins, 1)
    np.testing.assert_allclose(values, true, atol=0.01 * true.max(), rtol=0.02)
    assert page.execute_script("return cells.observed") is None
    limit = np.percentile(true[n_bins > 0], 99.5)
    assert page.execute_script("return cells.limit") == pytest.approx(limit, rel=0.03)

    # The screen has the colour of the cell that lies there, and H&E between cells.
    page.execute_script("cells.viewer.viewport.zoomTo(3, null, true)")
    at_rest(page)
    picture = pixels(find(page, "#cells-osd").find_element("xpath", ".."))
    palette = np.array(page.execute_script("return PALETTE"))
    top, n_looked = page.execute_script("return cells.limit"), 0
    where = page.execute_script("return placeOfCells()")
    for cell in np.flatnonzero(n_bins > 0).tolist():
        row, col = middle(by_factors.labels, cell)
        x, y = (where[a] + (at + 0.5) * where["side"] for a, at in (("x", col), ("y", row)))
        if 120 < x < picture.shape[1] - 120 and 60 < y < picture.shape[0] - 60:
            step = min(255, int(256 * values[cell] / top))
            assert np.abs(picture[int(y), int(x)].astype(int) - palette[step]).max() <= 3
            n_looked += 1
    assert n_looked > 5


def test_pointing_reads_a_cell_and_a_click_keeps_it(by_genes: Reported, opened: Any) -> None:
    page = opened(by_genes)
    with by_genes.slide as slide:
        gene = slide.genes[1]
        rate, counts = slide.layers(gene)
        sums = by_genes.sums(np.stack([rate, counts, np.ones_like(rate)]), slide)
    label = read_results(by_genes.run).labels[gene.id]
    type_gene(page, label)
    cell, other = (int(c) for c in np.argsort(-sums[:, 1])[:2])
    move_to(page, *middle(by_genes.labels, cell), click=True)
    until(page, f"cells.kept === {cell}")
    text = find(page, "#cells-readout").text
    assert text.startswith(f"c{cell} ({HOSTILE if cell % 2 else 'a'}), ")
    assert f"observed {sums[cell, 1]:.0f} UMIs in its {sums[cell, 2]:.0f} scored bins" in text
    predicted = float(text.split("predicted ")[1].split(",")[0])
    assert predicted == pytest.approx(sums[cell, 0], rel=0.06)
    move_to(page, *middle(by_genes.labels, other))
    until(page, f"$('cells-readout').textContent.startsWith('c{other} ')")
    row, col = np.argwhere(by_genes.labels == 0)[500]
    move_to(page, row, col)
    until(page, f"$('cells-readout').textContent.startsWith('c{cell} ')")  # what was kept

    find(page, "#cells-find").send_keys(f"c{other}")
    at_rest(page)
    assert page.execute_script("return cells.kept") == other
    x, y = seen_at(page, *middle(by_genes.labels, other))
    size = find(page, "#cells-osd").size
    assert abs(x - size["width"] / 2) < 0.2 * size["width"]
    assert abs(y - size["height"] / 2) < 0.3 * size["height"]
    assert page.execute_script("return placeOfCells().side") > 5  # lines are drawn between cells
    find(page, "#cells-find").send_keys("0123")
    until(page, "$('cells-status').textContent === 'No cell has this name.'")


def test_observed_counts_and_factors_can_be_chosen(by_factors: Reported, opened: Any) -> None:
    page = opened(by_factors)
    with by_factors.slide as slide:
        gene = slide.genes[2]
        sums = by_factors.sums(slide.layers(gene)[1][None], slide)[:, 0]
        n_bins = by_factors.sums(np.ones((1, *by_factors.labels.shape)), slide)[:, 0]
    type_gene(page, read_results(by_factors.run).labels[gene.id])
    find(page, "#cells-what label:has([value='observed'])").click()
    assert page.execute_script("return cells.what") == "observed"
    seen = np.array(page.execute_script("return Array.from(cells.observed)"))
    np.testing.assert_allclose(seen, sums / np.maximum(n_bins, 1), rtol=1e-6)
    options = page.find_elements("css selector", "#cells-factor option")
    assert len(options) == N_FACTORS + 1
    options[2].click()
    until(page, "$('cells-unit').textContent === 'UMIs per 64 µm² of factor 2'")
    assert page.execute_script("return cells.what") == "predicted"
    assert not find(page, "#cells-what [value='observed']").is_enabled()
    assert find(page, "#cells-gene").get_attribute("value") == ""


@pytest.mark.parametrize("width", [1280, 700])
def test_nothing_is_wider_than_the_page(by_factors: Reported, opened: Any, width: int) -> None:
    page = opened(by_factors)
    resize(page, width, 900)
    assert page.execute_script("return document.documentElement.scrollWidth") == width

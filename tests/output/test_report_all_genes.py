"""All genes in the report: the page's data, and the maps that the browser makes of them."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, resize
from factor_run import N_FACTORS, N_GENES, WITHOUT_LOADING, Added, add_factors
from report_run import HOSTILE, rename_gene, write_picture
from test_report_browser import CONTRAST
from test_report_codes import bound

from virchow_st.errors import ConfigError
from virchow_st.field.loadings import Loadings
from virchow_st.kernels.pooling import pool_mask
from virchow_st.output.report import all_genes, write_report
from virchow_st.output.report.codes import CodedLoadings, decode_factor, decode_loadings, unpack
from virchow_st.run.evaluated import read_results
from virchow_st.run.maps import open_maps
from virchow_st.runtime.progress import SILENT


def copied(run: Path, to: Path) -> Path:
    to = Path(shutil.copytree(run, to, ignore=shutil.ignore_patterns("figures", "checkpoints")))
    write_picture(to / "figures" / "training_curves.png")
    return to


@pytest.fixture(scope="module")
def run(evaluated_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = copied(evaluated_run, tmp_path_factory.mktemp("all") / "run")
    rename_gene(run, HOSTILE)
    return run


@pytest.fixture(scope="module")
def added(run: Path) -> Added:
    found = add_factors(run)
    write_report(run)
    return found


def true_map(run: Path, added: Added, s: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Σ w·h at 8 µm in the bins that have values, and the bound of its error; both (N,)."""
    with open_maps(read_results(run).maps[s]) as slide:
        maps = added.maps[slide.name]
        known = pool_mask(slide.scored_mask & ~np.isnan(maps[0]), 4)
    k, rows, cols = maps.shape
    cells = maps.astype(np.float64).reshape(k, rows // 4, 4, cols // 4, 4).sum((2, 4))[:, known]
    error = [bound(values, values.max()) for values in cells]
    # Factors on disk have ten binary digits, and loadings in the page steps of their own.
    slack = (2**-11 + 2e-4) * (weights @ cells)
    return weights @ cells, weights @ np.array(error) * 1.01 + slack + 1e-9


def element(page: str, name: str) -> str:
    found = re.search(rf'id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found, name
    return found[1]


@pytest.mark.parametrize("s", [0, 1])
def test_the_data_are_every_genes_map(run: Path, added: Added, s: int) -> None:
    page = (run / "report.html").read_text("utf-8")
    about = json.loads(element(page, "all-genes"))
    slide = json.loads(element(page, "all-slides"))[s]
    assert about["ids"] == list(added.genes.ids)
    low, high = unpack(element(page, "loadings")).reshape(2, N_GENES, -1).astype(np.uint16)
    loadings = decode_loadings(CodedLoadings(low + 256 * high, about["low"], about["step"]))
    maps = []
    for k, top in enumerate(slide["tops"]):
        codes = np.cumsum(unpack(element(page, f"factor-{s}-{k}")), dtype=np.uint64) % 256
        maps.append(decode_factor(codes.astype(np.uint8), top))
    for gene in range(N_GENES):
        true, most = true_map(run, added, s, added.loadings[gene].astype(np.float64))
        assert true.size > 50
        assert (np.abs(loadings[gene] @ np.array(maps) - true) <= most).all()
    scores = read_results(run).all_genes
    assert about["scores"]["16"]["pcc"][2] == pytest.approx(scores[11].pcc, rel=1e-3)


def test_a_run_of_a_panel_has_no_such_section(
    evaluated_run: Path, tmp_path: Path, added: Added
) -> None:
    run = copied(evaluated_run, tmp_path / "run")
    page = write_report(run).read_text("utf-8")
    assert "all-genes" not in page
    assert "factor-0-0" not in page


def test_a_run_without_its_fields_is_to_be_evaluated_again(
    run: Path, added: Added, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    before = (other / "report.html").read_bytes()
    shutil.rmtree(other / "fields")
    with pytest.raises(ConfigError, match=r"fields/T-1\.zarr: not found; run `vst evaluate"):
        write_report(other)
    assert (other / "report.html").read_bytes() == before


# --- size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("room", "scale_um"), [(10**6, 8), (11_000, 16)])
def test_factors_that_do_not_fit_are_coarser(
    run: Path, added: Added, monkeypatch: pytest.MonkeyPatch, room: int, scale_um: int
) -> None:
    monkeypatch.setattr(all_genes, "FACTORS_BYTES", room)
    written: list[str] = []
    all_genes.write_all_genes_data(written.append, read_results(run), SILENT)
    slides = json.loads(element("".join(written), "all-slides"))
    assert [slide["scaleUm"] for slide in slides] == [scale_um] * 2
    factors = [text for text in written if 'id="factor-' in text]
    assert sum(map(len, factors)) < room + 100 * len(factors)


@pytest.mark.slow
def test_a_whole_transcriptome_on_a_full_slide_fits(
    evaluated_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """18,000 genes by 32 factors that cannot be packed, on 0.7 million bins of 8 µm."""
    rng = np.random.default_rng(0)
    mask = np.ones((840, 840), bool)
    values = rng.random((32, mask.sum()), np.float32) ** 2
    monkeypatch.setattr(all_genes, "_read", lambda *_: all_genes._SlideFactors(8, mask, values))

    class Field:
        path, leading_genes = tmp_path / "P.zarr", [["GENE"] * 10] * 32

    written: list[str] = []
    room = all_genes.FACTORS_BYTES
    slide = all_genes._write_slide(written.append, 0, Field(), room, SILENT)  # type: ignore[arg-type]
    loadings = rng.gamma(0.1, 1, (18_000, 32)).astype(np.float32)
    written.append(all_genes.pack_loadings(all_genes.code_loadings(loadings)))
    assert slide["scaleUm"] == 8
    assert 29e6 < sum(map(len, written)) < 34e6  # scores and names take 3 MB more


# --- in the browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(browser: Any, run: Path, added: Added) -> Iterator[Any]:
    resize(browser, 1280, 900)
    browser.get("about:blank")
    browser.get((run / "report.html").as_uri())
    browser.execute_script("document.getElementById('all-genes-section').scrollIntoView()")
    until(
        browser,
        "return all.values !== null && document.getElementById('all-status').textContent === ''",
    )
    yield browser
    assert browser.get_log("browser") == []


def until(page: Any, script: str) -> None:
    for _ in range(600):
        if page.execute_script(script):
            return
        time.sleep(0.05)
    pytest.fail(f"the page did not get there in 30 s: {script}")


def find(page: Any, selector: str) -> Any:
    return page.find_element("css selector", selector)


def shown(page: Any, title: str) -> np.ndarray:
    until(page, f"return document.getElementById('all-title').textContent === {json.dumps(title)}")
    return np.array(page.execute_script("return Array.from(all.values)"))


def test_a_gene_is_typed_and_its_map_is_right(run: Path, added: Added, page: Any) -> None:
    box = find(page, "#all-find")
    for gene in (11, 26, WITHOUT_LOADING):
        page.execute_script("document.getElementById('all-find').value = ''")
        box.send_keys(added.genes.ids[gene][-5:], "\ue007")  # Enter
        values = shown(page, added.genes.symbols[gene])
        true, most = true_map(run, added, 0, added.loadings[gene].astype(np.float64))
        assert (np.abs(values - true) <= most + 1e-6 * true).all()
    assert find(page, "#all-no-observed").text.startswith("To limit the size")


def test_arrow_keys_walk_through_what_was_found(added: Added, page: Any) -> None:
    box = find(page, "#all-find")
    box.send_keys("sym1")
    names = [x.text for x in page.find_elements("css selector", "#all-list li span:first-child")]
    expected = {s for s in added.genes.symbols if s.lower().startswith("sym1")}
    assert set(names) == expected
    assert len(names) > 3
    assert names[0] == "SYM1"  # what is exactly that comes first
    box.send_keys("\ue015\ue015\ue013\ue015")  # down, down, up, down
    shown(page, names[1])
    chosen = find(page, "#all-list [aria-selected=true]")
    assert box.get_attribute("aria-activedescendant") == chosen.get_attribute("id")
    assert chosen.find_element("css selector", "span").text == names[1]
    assert page.switch_to.active_element == box
    box.send_keys("\ue00c")  # Escape
    assert box.get_attribute("value") == ""
    assert len(page.find_elements("css selector", "#all-list li")) == N_GENES


def test_a_gene_of_the_panel_has_its_observed_counts(run: Path, added: Added, page: Any) -> None:
    box = find(page, "#all-find")
    box.send_keys(added.genes.ids[7], "\ue007")
    shown(page, added.genes.symbols[7])
    with open_maps(read_results(run).maps[0]) as slide:
        _, counts = slide.layers(slide.genes[1])
        counts = np.where(slide.scored_mask, counts, 0)
        known = pool_mask(slide.scored_mask, 4)
    at_8um = counts.reshape(64, 4, 64, 4).sum((1, 3))
    read = "return all.observed.at(arguments[0], arguments[1])"
    strongest = np.argwhere(known & (at_8um >= np.sort(at_8um[known])[-3]))
    for row, col in (*strongest.tolist(), *np.argwhere(known)[::700].tolist()):
        assert round(page.execute_script(read, row, col)) == at_8um[row, col]
    for row, col in np.argwhere(~known)[:2].tolist():
        assert page.execute_script(read, row, col) is None
    assert find(page, "#all-observed").is_displayed()
    cells = [
        x.text for x in page.find_elements("css selector", "#all-scores tbody tr:nth-child(3) td")
    ]
    row = read_results(run).all_genes[7 * 4 + 2]
    assert cells[0] == "8 µm"
    assert float(cells[2]) == pytest.approx(row.pcc, abs=6e-4)
    assert float(cells[3]) == pytest.approx(row.pcc_ceiling, abs=6e-4)


def test_the_canvas_is_that_map(page: Any, added: Added) -> None:
    """Colours follow the values, and bins without one are empty."""
    find(page, "#all-find").send_keys("SYM20", "\ue007")
    shown(page, "SYM20")
    drawn, places, values, limit = page.execute_script(
        "const c = document.getElementById('all-predicted');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "const f = [...all.loaded.values()][0];"
        "const plain = (a) => Array.from(a);"
        "return f.then((x) => [plain(d), plain(x.places), plain(all.values), all.limit])"
    )
    pixels = np.array(drawn).reshape(-1, 4)
    there = np.zeros(len(pixels), bool)
    there[places] = True
    assert (pixels[there, 3] == 255).all()
    assert (pixels[~there, 3] == 0).all()
    assert not there[2 * 64 + 2]  # it holds the bin that is left out
    light = pixels[places, :3].sum(1)
    order = np.argsort(values)
    assert np.corrcoef(np.arange(len(order)), np.argsort(np.argsort(light))[order])[0, 1] > 0.99
    assert limit == pytest.approx(np.percentile(values, 99.5), rel=0.02)


def test_a_factor_is_seen_large_and_leads_to_its_genes(run: Path, added: Added, page: Any) -> None:
    buttons = page.find_elements("css selector", "#factor-list button")
    assert len(buttons) == N_FACTORS
    shares = [float(b.text.split("\n")[1].removesuffix(" %")) for b in buttons]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.5)
    k = int(buttons[1].get_attribute("data-factor"))
    buttons[1].click()
    values = shown(page, f"Factor {k + 1}")
    true, most = true_map(run, added, 0, np.eye(N_FACTORS)[k])
    assert (np.abs(values - true) <= most + 1e-6 * true).all()
    assert not find(page, "#all-scores").is_displayed()
    gene = find(page, "#all-detail button")
    name = gene.text
    assert name == Loadings(added.genes, added.loadings).leading[k][0]
    gene.click()
    shown(page, name)


def test_another_slide_has_its_own_maps(run: Path, added: Added, page: Any) -> None:
    find(page, "#all-find").send_keys("SYM20", "\ue007")
    shown(page, "SYM20")
    page.execute_script(
        "const x = document.getElementById('all-slide'); x.value = 1;"
        "x.dispatchEvent(new Event('change'))"
    )
    until(page, "return document.getElementById('all-status').textContent === ''")
    true, most = true_map(run, added, 1, added.loadings[20].astype(np.float64))
    assert (np.abs(shown(page, "SYM20") - true) <= most + 1e-6 * true).all()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 700])
def test_nothing_is_wider_than_the_page(page: Any, width: int, scheme: str) -> None:
    resize(page, width, 900)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    assert page.execute_script("return document.documentElement.scrollWidth") == width
    low = [x for x in page.execute_script(CONTRAST) if "osd" not in x]
    assert low == []
    assert HOSTILE in find(page, "#all-list").text

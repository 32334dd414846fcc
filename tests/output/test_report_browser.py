"""The report in a real browser: pixels, keys, widths, and no error messages.

Slide T-1 is 256 × 256 bins. Its H&E has a green square, the first gene's observation one bright
square and its prediction another, each at a place that no mirroring or turning leaves where it is.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from browser import chromium, pixels, resize
from report_run import HOSTILE, rename_gene, write_picture

from virchow_st.output.figures.choice import strongest_first
from virchow_st.output.report import layers, slides, write_report
from virchow_st.run.evaluated import read_results

BINS = 256
GREEN, SEEN, MEANT = (24, 150), (40, 200), (200, 56)  # first row and column of the squares, 16 bins
BIN = 16
SQUARES = {"he": GREEN, "observed": SEEN, "predicted": MEANT}


@pytest.fixture(scope="module")
def run(evaluated_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reported run with marks, and one gene whose symbol tries to break the page."""
    ignored = shutil.ignore_patterns("figures", "checkpoints")
    to = tmp_path_factory.mktemp("browser") / "run"
    run = Path(shutil.copytree(evaluated_run, to, ignore=ignored))
    write_picture(run / "figures" / "training_curves.png")
    first = strongest_first(read_results(run))[0]
    rename_gene(run, HOSTILE)
    with h5py.File(run / "maps" / "T-1.h5", "r+") as f:
        g = list(f["gene_id"].asstr()[:]).index(first.id)
        f["scored_mask"][:] = True
        for name, (row, col) in (("counts", SEEN), ("rate", MEANT)):
            f[name][g] = 0
            f[name][g, row : row + BIN, col : col + BIN] = 5
        image = np.full((2 * BINS, 2 * BINS, 3), (240, 220, 230), np.uint8)
        row, col = (2 * x for x in GREEN)
        image[row : row + 2 * BIN, col : col + 2 * BIN] = (20, 200, 40)
        f["image"][:] = image
    with pytest.MonkeyPatch.context() as patch:
        for module in (layers, slides):  # H&E of three levels, 16 tiles the finest
            patch.setattr(module, "TILE_PX", 128)
        write_report(run)
    return run


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(browser: Any, run: Path) -> Iterator[Any]:
    """The report, newly opened at 1280 px; nothing may have complained at the end."""
    resize(browser, 1280, 900)
    browser.get("about:blank")  # so that nothing of the test before is taken for this page
    browser.get((run / "report.html").as_uri())
    until(lambda: loaded(browser))
    yield browser
    assert browser.get_log("browser") == []


def until(is_true: Callable[[], Any]) -> None:
    """Wait for what a page does in its own time."""
    for _ in range(600):
        if is_true():
            return
        time.sleep(0.05)
    pytest.fail("the page did not get there in 30 s")


def drawn(page: Any) -> None:
    """Wait until every layer is there, nothing moves, and that has been drawn."""
    until(lambda: loaded(page))
    springs = "[v.zoomSpring, v.centerSpringX, v.centerSpringY]"
    rests = f"const v = viewer.viewport; return {springs}.every((x) => x.isAtTargetValue())"
    until(lambda: page.execute_script(rests))
    page.execute_async_script(
        "const done = arguments[0]; let frames = 5;"
        "const frame = () => --frames ? requestAnimationFrame(frame) : done(); frame()"
    )


def loaded(page: Any) -> bool:
    return bool(
        page.execute_script(
            "if (typeof viewer !== 'object' || viewer.world.getItemCount() !== 3) return false;"
            "const items = [0, 1, 2].map((i) => viewer.world.getItemAt(i));"
            "return items.every((item) => item.getOpacity() === 0 || item.getFullyLoaded())"
        )
    )


def find(page: Any, css: str) -> Any:
    return page.find_element("css selector", css)


def choose(page: Any, fieldset: str, value: str) -> None:
    """Choose a radio button of a bar, as a click on its label does."""
    find(page, f"#{fieldset} label:has([value='{value}'])").click()
    drawn(page)


def move_divider(page: Any, *keys: str) -> None:
    from selenium.webdriver.common.keys import Keys

    find(page, "#curtain").send_keys("".join(getattr(Keys, key) for key in keys))
    drawn(page)


def place(mark: np.ndarray) -> tuple[float, float, float]:
    """Centre (row, column) in bins and side in bins of what is marked in the picture's pixels."""
    height, width = mark.shape
    side = min(height, width)
    rows, cols = np.nonzero(mark)
    to_bins = BINS / side
    row = (rows.mean() + 0.5 - (height - side) / 2) * to_bins
    col = (cols.mean() + 0.5 - (width - side) / 2) * to_bins
    return row, col, np.sqrt(len(rows)) * to_bins


def is_green(image: np.ndarray) -> np.ndarray:
    r, g, b = np.moveaxis(image.astype(int), 2, 0)
    return (g > 150) & (r < 90) & (b < 110)


def is_bright(image: np.ndarray) -> np.ndarray:
    """The last colour of magma, at and above the limit."""
    return np.abs(image.astype(int) - (252, 253, 191)).max(axis=2) < 6


def only(page: Any, what: str) -> None:
    """Show one layer on both sides, so that the divider shows nothing of its own."""
    for side in ("left", "right"):
        choose(page, side, what)
    page.execute_script("document.getElementById('curtain').style.visibility = 'hidden'")
    for label in ("#left-name", "#right-name", ".buttons", "#scale-bar"):
        page.execute_script(f"document.querySelector('{label}').style.visibility = 'hidden'")


@pytest.mark.parametrize("what", ["he", "observed", "predicted"])
def test_everything_is_the_right_way_round(page: Any, what: str) -> None:
    choose(page, "scale", "2")
    only(page, what)
    image = pixels(find(page, "#osd"))
    row, col, side = place(is_green(image) if what == "he" else is_bright(image))
    wanted = [first + BIN / 2 for first in SQUARES[what]]
    assert [row, col] == pytest.approx(wanted, abs=1.0)
    assert side == pytest.approx(BIN, abs=1.5)


def test_the_divider_parts_left_from_right(page: Any) -> None:
    move_divider(page, "END")
    seen = pixels(find(page, "#osd"))
    assert place(is_bright(seen))[:2] == pytest.approx([SEEN[0] + 8, SEEN[1] + 8], abs=4)
    move_divider(page, "HOME")
    meant = pixels(find(page, "#osd"))
    assert place(is_bright(meant))[:2] == pytest.approx([MEANT[0] + 8, MEANT[1] + 8], abs=4)
    for _ in range(5):
        move_divider(page, "SHIFT", "ARROW_RIGHT")
    assert find(page, "#curtain").get_attribute("aria-valuenow") == "50"
    half = pixels(find(page, "#osd"))
    width = half.shape[1]
    assert (half[:, : width // 2 - 24] == seen[:, : width // 2 - 24]).all()
    assert (half[:, width // 2 + 24 :] == meant[:, width // 2 + 24 :]).all()


def test_the_divider_follows_the_mouse(page: Any) -> None:
    from selenium.webdriver import ActionChains

    handle = find(page, "#curtain span")
    ActionChains(page).drag_and_drop_by_offset(handle, 200, 0).perform()
    width = find(page, "#osd").size["width"]
    now = float(find(page, "#curtain").get_attribute("aria-valuenow"))
    assert now == pytest.approx(50 + 100 * 200 / width, abs=1)


def test_the_scale_changes_the_bins_and_their_unit(page: Any) -> None:
    only(page, "observed")
    found = {}
    for scale in ("2", "4", "8", "16"):
        choose(page, "scale", scale)
        found[scale] = pixels(find(page, "#osd"))
        assert find(page, "#unit").text.startswith(f"UMIs per {scale} µm bin of")
        assert find(page, "#gene-order").text == f"PCC at {scale} µm"
    # The square begins at bin 40 of 2 µm: on the raster of 16 µm, and so it stays as it is.
    for scale in ("4", "8", "16"):
        assert place(is_bright(found[scale]))[2] == pytest.approx(BIN, abs=1.5)
    find(page, "#gene-list label:nth-child(2)").click()
    until(lambda: loaded(page))
    pictures = []
    for scale in ("2", "16"):
        choose(page, "scale", scale)
        pictures.append(pixels(find(page, "#osd")))
    assert (pictures[0] != pictures[1]).any(axis=2).mean() > 0.05


def test_another_gene_shows_its_own_map(page: Any) -> None:
    only(page, "observed")
    first = pixels(find(page, "#osd"))
    assert is_bright(first).any()
    find(page, "#gene-list label:nth-child(3)").click()
    drawn(page)
    other = pixels(find(page, "#osd"))
    assert (first != other).any(axis=2).mean() > 0.05
    name = find(page, "#gene-list label:nth-child(3) span").text
    assert find(page, "#unit").text.endswith(name)
    find(page, "#gene-list label:nth-child(1)").click()
    drawn(page)
    inner = np.s_[8:-8, 8:-8]  # but for the corners, which are rounded
    assert (pixels(find(page, "#osd"))[inner] == first[inner]).all()


def test_genes_are_chosen_by_key_and_found_by_name(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    page.execute_script("document.querySelector('#gene-list input').focus()")
    find(page, "#gene-list :checked").send_keys(Keys.ARROW_DOWN)
    second = find(page, "#gene-list label:nth-child(2)")
    assert second.find_element("css selector", "input").is_selected()
    name = second.find_element("css selector", "span").text
    until(lambda: find(page, "#unit").text.endswith(name))
    find(page, "#find").send_keys(name.lower())
    shown = [x for x in page.find_elements("css selector", "#gene-list label") if x.is_displayed()]
    assert [label.find_element("css selector", "span").text for label in shown] == [name]


def test_zoom_makes_bins_larger_and_home_shows_all(page: Any) -> None:
    choose(page, "scale", "2")
    only(page, "he")
    page.execute_script("document.querySelector('.buttons').style.visibility = ''")
    before = pixels(find(page, "#osd"))
    bar = find(page, "#scale-bar i").size["width"], find(page, "#scale-bar span").text
    centre = "viewer.viewport.panTo(new OpenSeadragon.Point(0.617, 0.125), true)"  # of the mark
    page.execute_script(centre)
    find(page, "#zoom-in").click()
    drawn(page)
    zoomed = pixels(find(page, "#osd"))
    growth = is_green(zoomed).sum() / is_green(before).sum()
    assert growth == pytest.approx(1.5**2, rel=0.1)
    assert (find(page, "#scale-bar i").size["width"], find(page, "#scale-bar span").text) != bar
    find(page, "#home").click()
    drawn(page)
    assert is_green(pixels(find(page, "#osd"))).sum() == pytest.approx(
        is_green(before).sum(), rel=0.03
    )


def test_keys_move_and_zoom_but_neither_turn_nor_mirror(page: Any) -> None:
    canvas = find(page, "#osd .openseadragon-canvas")
    page.execute_script("document.querySelector('#osd .openseadragon-canvas').focus()")
    zoom = "return viewer.viewport.getZoom()"
    before = page.execute_script(zoom)
    canvas.send_keys("rf")
    turned = "return [viewer.viewport.getRotation(), viewer.viewport.getFlip()]"
    assert page.execute_script(turned) == [0, False]
    canvas.send_keys("+")
    until(lambda: page.execute_script(zoom) > before)
    for _ in range(10):  # a tap on the key zooms for some frames
        drawn(page)
    canvas.send_keys("0")
    until(lambda: page.execute_script(zoom) == pytest.approx(before))


def test_opacity_lets_the_tissue_through(page: Any) -> None:
    only(page, "observed")
    solid = pixels(find(page, "#osd"))
    page.execute_script(
        "const x = document.getElementById('opacity'); x.value = 0;"
        "x.dispatchEvent(new Event('input'))"
    )
    drawn(page)
    assert is_green(pixels(find(page, "#osd"))).any()
    assert not is_green(solid).any()


def test_a_bin_is_read_under_the_mouse(page: Any) -> None:
    from selenium.webdriver import ActionChains

    choose(page, "scale", "8")
    osd = find(page, "#osd")
    pixels(osd)  # brings it into the window
    side = min(osd.size.values())
    for (row, col), told in ((SEEN, "observed 80, predicted 0 UMIs"),
                             (MEANT, "observed 0, predicted 80 UMIs")):  # fmt: skip
        x, y = ((at + 9) / BINS * side - side / 2 for at in (col, row))
        ActionChains(page).move_to_element_with_offset(osd, round(x), round(y)).perform()
        until(lambda told=told: told in find(page, "#readout").text)
        text = find(page, "#readout").text
        assert f"bin row {row + 9}, column {col + 9}" in text or f"bin row {row + 8}" in text
        assert text.endswith("in this 8 µm bin")


def test_another_slide_brings_its_own_tissue_and_maps(page: Any) -> None:
    only(page, "he")
    first = pixels(find(page, "#osd"))
    page.execute_script(
        "const x = document.getElementById('slide-select'); x.value = 1;"
        "x.dispatchEvent(new Event('change'))"
    )
    drawn(page)
    assert (first != pixels(find(page, "#osd"))).any(axis=2).mean() > 0.3
    assert "T-2" in find(page, "#slide-select option:checked").text
    only(page, "observed")
    assert is_bright(pixels(find(page, "#osd"))).any()


def test_the_table_of_genes_is_sorted_by_its_heads_and_leads_to_the_slide(page: Any) -> None:
    def column(n: int) -> list[str]:
        return page.execute_script(
            "return [...document.querySelectorAll('#gene-table tbody tr')]"
            f".map((row) => row.cells[{n}].textContent)"
        )

    numbers = [float(x) for x in column(3)]
    assert numbers == sorted(numbers, reverse=True)
    head = find(page, "#gene-table [data-sort='mean']")
    for is_down in (True, False):
        head.click()
        numbers = [float(x) for x in column(1)]
        assert numbers == sorted(numbers, reverse=is_down)
        sort = "descending" if is_down else "ascending"
        assert find(page, "#gene-table [aria-sort]").get_attribute("aria-sort") == sort
    find(page, "#gene-table [data-sort='label']").click()
    assert column(0) == sorted(column(0), key=str.lower)
    at_8 = column(1)
    find(page, "#table-scale label:nth-of-type(1)").click()
    assert column(1) != at_8
    button = page.find_elements("css selector", "#gene-table tbody button")[2]
    name = button.text
    button.click()
    until(lambda: find(page, "#unit").text.endswith(name))


def test_a_symbol_cannot_break_the_page(page: Any) -> None:
    names = [x.text for x in page.find_elements("css selector", "#gene-list span:first-of-type")]
    assert HOSTILE in names
    assert len(page.find_elements("css selector", "body > main > section")) == 6
    assert page.title.endswith("virchow_st report")


# Text that has too little contrast with what is behind it: below 4.5, as WCAG 2.1 AA asks.
CONTRAST = """
const linear = (x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) =>
  0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const behind = (x) => {
  for (; x; x = x.parentElement) {
    const [r, g, b, a = 1] = parse(getComputedStyle(x).backgroundColor);
    if (a > 0.5) return [r, g, b];
  }
};
return [...document.querySelectorAll("body *")].filter((x) => {
  const isText = [...x.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim());
  if (!isText || !x.checkVisibility() || x.matches(".picture *, script, style")) return false;
  const [ink, paper] = [parse(getComputedStyle(x).color), behind(x)].map(luminance);
  return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05) < 4.5;
}).map((x) => x.outerHTML.slice(0, 90));
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800])
def test_nothing_is_wider_than_the_page(page: Any, width: int, scheme: str) -> None:
    resize(page, width, 900)
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    page.execute_script("for (const x of document.querySelectorAll('details')) x.open = true")
    drawn(page)
    assert page.execute_script("return document.documentElement.scrollWidth") == width
    beyond = page.execute_script(
        "return [...document.querySelectorAll('main *')].filter((x) => !x.closest('.scroll *') "
        "&& x.getBoundingClientRect().right > innerWidth).map((x) => x.outerHTML.slice(0, 80))"
    )
    assert beyond == []
    assert page.execute_script(CONTRAST) == []

"""Figures, drawn from a synthetic run directory with known rates."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.measure import block_reduce

from virchow_st.errors import ConfigError
from virchow_st.figures import draw_figures, find_genes, strongest_genes
from virchow_st.figures.curves import curves_figure
from virchow_st.figures.multiscale import (
    density,
    multiscale_figure,
    shared_limit,
    shrink,
    strongest_window,
    sum_bins,
)
from virchow_st.figures.results import Gene, open_maps, read_history, read_metrics, read_scores
from virchow_st.figures.style import UNSCORED

ROWS, COLS = 300, 382  # neither whole patches nor whole 8 µm bins
SYMBOLS = ("EPCAM", "PIGR", "HLA-A", "SAA2", "SAA2", "NONE")
MEANS = (0.15, 0.05, 0.4, 0.02, 0.02, 0.0)


def write_run(run: Path, rows: int = ROWS, cols: int = COLS, epochs: int = 18) -> Path:
    """Write the result files of a run whose rates are smooth and whose counts are Poisson."""
    rng = np.random.default_rng(0)
    mask = gaussian_filter(rng.normal(size=(rows, cols)), 30) > -0.009
    mask[100:128, 130:170] = False
    rates, counts = [], []
    for mean in MEANS:
        coarse = np.exp(0.7 * _standardised(gaussian_filter(rng.normal(size=(rows, cols)), 18)))
        fine = np.exp(0.8 * _standardised(gaussian_filter(rng.normal(size=(rows, cols)), 2)))
        rate = np.where(mask, mean * coarse * fine / (coarse * fine).mean(), 0)
        rates.append(rate)
        counts.append(rng.poisson(rate))
    (run / "maps").mkdir(parents=True)
    with h5py.File(run / "maps" / "P5.h5", "w") as f:
        f.attrs.update(format="virchow_st.maps/1", patient="P5", row0=256, col0=128, bin_um=2)
        f["rate"] = np.array(rates, np.float16)
        f["counts"] = np.array(counts, np.uint16)
        f["scored_mask"] = mask
        f["image"] = _stain(mask, rates[0], rng)
        f["gene_id"] = [f"ENSG{g:04d}" for g in range(len(SYMBOLS))]
        f["gene_symbol"] = list(SYMBOLS)
    _write_tables(run, counts, mask, epochs)
    return run


def _standardised(field: np.ndarray) -> np.ndarray:
    return (field - field.mean()) / field.std()


def _stain(mask: np.ndarray, rate: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pink stroma, purple nuclei where the first gene is strong, white glass."""
    up = np.ones((2, 2))
    tissue = np.kron(mask, up)[..., None]
    chance = np.kron(rate / rate.max(), up) * 0.02 + 0.002
    nuclei = gaussian_filter((rng.random(chance.shape) < chance).astype(float), 2.5)
    alpha = np.clip(nuclei * 30, 0, 0.9)[..., None]
    noise = gaussian_filter(rng.normal(size=chance.shape), 3)[..., None] * 60
    pink = np.array([226, 160, 196]) + noise
    colour = (1 - alpha) * pink + alpha * np.array([84, 48, 132])
    return np.where(tissue, colour, 245).clip(0, 255).astype(np.uint8)


def _write_tables(run: Path, counts: list[np.ndarray], mask: np.ndarray, epochs: int) -> None:
    columns = [
        *("gene_id", "symbol", "scale_um", "mean", "nonzero", "pcc", "pcc_ceiling"),
        *("pcc_shuffled", "ssim", "ssim_shuffled", "ssim_all_zero", "d2_poisson", "calibration"),
    ]
    with (run / "per_gene.csv").open("w", newline="") as f:
        table = csv.DictWriter(f, columns, restval="0.1")
        table.writeheader()
        for g, symbol in enumerate(SYMBOLS):
            for scale in (2, 4, 8, 16):
                mean = counts[g][mask].mean() * (scale / 2) ** 2
                table.writerow({
                    "gene_id": f"ENSG{g:04d}", "symbol": symbol, "scale_um": scale, "mean": mean,
                    "pcc": "" if mean == 0 else 0.2 + 0.03 * scale,
                    "pcc_ceiling": "nan" if mean == 0 else 0.3 + 0.04 * scale,
                    "ssim": 0.6 - 0.03 * scale, "ssim_shuffled": 0.5 - 0.03 * scale,
                })  # fmt: skip
    scales = {str(s): {"pcc": 0.18 + 0.03 * s} for s in (2, 4, 8, 16)}
    metrics = {"format": "virchow_st.metrics/1", "test_patients": ["P5"], "n_genes": len(SYMBOLS)}
    (run / "metrics.json").write_text(json.dumps({**metrics, "scales": scales}))
    (run / "history.jsonl").write_text("".join(_history_line(e) for e in range(1, epochs + 1)))


def _history_line(epoch: int) -> str:
    fall = np.exp(-epoch / 4)
    by_scale = {"2": 0.30, "4": 0.62, "8": 1.10, "16": 2.2}
    line = {
        "epoch": epoch, "step": 12 * epoch, "lr": 5e-5,
        "train": {"loss": {s: d * (0.8 + fall) for s, d in by_scale.items()}},
        "weights": {s: 1 + (0.2 * np.log2(d)) * (1 - fall) for s, d in by_scale.items()},
        "validation": {
            "loss": {s: d * (0.9 + fall + 4e-4 * epoch**2) for s, d in by_scale.items()},
            "pcc": {s: (0.2 + 0.03 * int(s)) * (1 - fall) for s in by_scale},
        },
        "best": epoch <= 12, "seconds": 1.0, "patches_per_s": 100.0,
    }  # fmt: skip
    return json.dumps(line) + "\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("figures") / "run")


@pytest.fixture
def broken(run: Path, tmp_path: Path) -> Path:
    """A copy of the run for a test to damage."""
    return Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("figures")))


def draw_gene(run: Path, n: int) -> Figure:
    scores = read_scores(run)
    with open_maps(run / "maps" / "P5.h5") as slide:
        gene = slide.genes[n]
        by_scale = {s.scale_um: s for s in scores if s.gene == gene}
        return multiscale_figure(slide, gene, gene.symbol, by_scale)


def texts(figure: Figure) -> list[str]:
    return [t.get_text() for t in figure.texts] + [a.get_ylabel() for a in figure.axes]


# --- sums, windows, images -------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2, 4, 7])
def test_sums_over_squares_keep_every_umi(factor: int) -> None:
    counts = np.random.default_rng(1).poisson(0.3, (ROWS, COLS)).astype(np.uint16)
    sums = sum_bins(counts, factor)
    np.testing.assert_array_equal(sums, block_reduce(counts.astype(float), factor, np.sum))
    assert sums.sum() == counts.sum(dtype=int)


def test_density_does_not_depend_on_the_scale_and_leaves_out_partly_scored_squares() -> None:
    mask = np.ones((16, 16), bool)
    mask[5, 9] = False
    for factor in (1, 2, 4):
        cells = density(np.full((16, 16), 0.25, np.float32), mask, factor)
        expected = np.zeros(cells.shape, bool)
        expected[5 // factor, 9 // factor] = True
        np.testing.assert_array_equal(cells.mask, expected)
        np.testing.assert_array_equal(cells.compressed(), np.float32(4.0))


def test_one_umi_is_16_in_its_2_um_bin_and_1_in_its_8_um_bin() -> None:
    counts = np.zeros((8, 8), np.uint16)
    counts[3, 6] = 1
    mask = np.ones((8, 8), bool)
    assert density(counts, mask, 1)[3, 6] == 16
    assert density(counts, mask, 4)[0, 1] == 1


def test_a_map_that_ends_inside_a_square_is_not_scored_there() -> None:
    cells = density(np.ones((6, 9)), np.ones((6, 9), bool), 4)
    np.testing.assert_array_equal(cells.mask, [[False, False, True], [True, True, True]])


@pytest.mark.parametrize("shape", [(300, 382), (131, 128), (128, 300)])
def test_the_strongest_window_holds_most_umis(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    rate = np.exp(2 * _standardised(gaussian_filter(rng.normal(size=shape), 20)))
    counts = rng.poisson(rate)
    window = strongest_window(counts)
    assert (window.rows, window.cols) == (128, 128)
    assert window.cut(counts).shape == (128, 128)
    assert window.row % 4 == window.col % 4 == 0
    raster = [
        counts[r : r + 128, c : c + 128].sum()
        for r in range(0, shape[0] - 127, 8)
        for c in range(0, shape[1] - 127, 8)
    ]
    assert window.cut(counts).sum() >= 0.98 * max(raster)


def test_a_map_smaller_than_the_window_is_shown_whole() -> None:
    window = strongest_window(np.ones((50, 300), int))
    assert (window.row, window.rows, window.cols) == (0, 50, 128)


def test_images_shrink_by_averaging() -> None:
    image = np.random.default_rng(3).integers(0, 256, (90, 120, 3), np.uint8)
    small = shrink(image, longest=40)
    np.testing.assert_array_equal(
        small, block_reduce(image.astype(float), (3, 3, 1), np.mean).astype(np.uint8)
    )
    assert shrink(image, longest=120) is not image
    np.testing.assert_array_equal(shrink(image, longest=120), image)


# --- the multi-scale figure ------------------------------------------------------------------


def test_prediction_and_observation_of_a_region_share_one_colour_scale(run: Path) -> None:
    panels = [a.images[0] for a in draw_gene(run, 0).axes if a.images]
    assert len(panels) == 14  # twice: H&E, then predicted and observed at 8, 4 and 2 µm
    with h5py.File(run / "maps" / "P5.h5") as f:
        rate, counts, mask = f["rate"][0].astype(np.float32), f["counts"][0], f["scored_mask"][:]
    window = strongest_window(counts)
    parts = [window.cut(values) for values in (rate, counts, mask)]
    for half, limit in ((panels[1:7], shared_limit(rate, counts, mask)),
                        (panels[8:], shared_limit(*parts))):  # fmt: skip
        assert {m.get_clim() for m in half} == {(0, limit)}


def test_panels_show_the_sums_of_the_files(run: Path) -> None:
    figure = draw_gene(run, 0)
    panels = [a.images[0].get_array() for a in figure.axes if a.images]
    predicted_8, observed_2 = panels[1], panels[6]
    with h5py.File(run / "maps" / "P5.h5") as f:
        rate, counts = f["rate"][0].astype(float), f["counts"][0]
        mask = f["scored_mask"][:]
    pooled = block_reduce(rate, 4, np.sum)
    known = block_reduce(mask, 4, np.min, cval=False)
    np.testing.assert_array_equal(~predicted_8.mask, known)
    np.testing.assert_allclose(predicted_8.compressed(), pooled[known], rtol=1e-6)
    np.testing.assert_array_equal(observed_2.compressed(), 16 * counts[mask])


def test_bins_that_are_not_scored_are_grey(run: Path) -> None:
    figure = draw_gene(run, 0)
    hole = 2 * 115, 2 * 150  # µm, the middle of the hole in the mask
    for axes in [a for a in figure.axes if a.images][1:7]:
        image = axes.images[0]
        left, _, _, top = image.get_extent()
        um = (image.get_extent()[1] - left) / image.get_array().shape[1]
        row, col = int((hole[0] - top) / um), int((hole[1] - left) / um)
        rgba = image.to_rgba(image.get_array())
        np.testing.assert_allclose(rgba[row, col], to_rgba(UNSCORED), atol=1e-6)
        scored = ~image.get_array().mask
        assert not np.isclose(rgba[scored], to_rgba(UNSCORED), atol=1e-3).all(axis=1).any()


def test_metrics_stand_over_their_columns_and_undefined_ones_are_dashes(run: Path) -> None:
    assert "PCC 0.44 (ceiling 0.62)\nSSIM 0.36 (shuffled 0.26)" in texts(draw_gene(run, 0))
    assert "PCC – (ceiling –)\nSSIM 0.36 (shuffled 0.26)" in texts(draw_gene(run, 5))


def test_the_symbol_is_italic_and_the_patient_beside_it(run: Path) -> None:
    titles = {t.get_text(): t.get_fontstyle() for t in draw_gene(run, 0).findobj(Text)}
    assert titles["EPCAM"] == "italic"
    assert titles["patient P5"] == "normal"


def test_the_scale_bar_is_as_long_as_it_says(run: Path) -> None:
    axes = draw_gene(run, 0).axes[0]
    assert [t.get_text() for t in axes.texts] == ["200 µm"]
    left, right = axes.lines[0].get_xdata()
    assert right - left == 200
    assert axes.get_xlim() == (0, 2 * COLS)  # the axes' unit is the µm


# --- the training curves ---------------------------------------------------------------------


def test_curves_are_those_of_the_history(run: Path) -> None:
    history, metrics = read_history(run), read_metrics(run)
    figure = curves_figure(history, metrics)
    pcc = next(a for a in figure.axes if a.get_ylabel().startswith("PCC"))
    np.testing.assert_array_equal(pcc.lines[0].get_ydata(), [e.validation_pcc[2] for e in history])
    diamonds = [line for line in pcc.lines if line.get_marker() == "D"]
    assert [d.get_ydata()[0] for d in diamonds] == [metrics.pcc[s] for s in (2, 4, 8, 16)]
    assert {d.get_xdata()[0] for d in diamonds} == {12}
    for axes in figure.axes:
        assert list(axes.lines[-1].get_xdata()) == [12, 12]  # the best epoch


def test_a_run_of_one_epoch_has_curves(broken: Path) -> None:
    (broken / "history.jsonl").write_text(_history_line(1))
    figure = curves_figure(read_history(broken), read_metrics(broken))
    figure.canvas.draw()
    assert figure.axes[0].lines[0].get_marker() == "o"


# --- draw_figures ----------------------------------------------------------------------------


def test_both_formats_are_written_at_print_resolution(run: Path) -> None:
    before = dict(matplotlib.rcParams)
    paths = draw_figures(run, ["PIGR", "ENSG0001", "ENSG0003"])
    names = ["multiscale_P5_PIGR", "multiscale_P5_SAA2_ENSG0003", "training_curves"]
    assert [p.name for p in paths] == [f"{n}.{kind}" for n in names for kind in ("png", "pdf")]
    assert sorted(p.name for p in (run / "figures").iterdir()) == sorted(p.name for p in paths)
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width == 2160  # 7.2 inches
                assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        else:
            assert path.read_bytes().startswith(b"%PDF")
    assert dict(matplotlib.rcParams) == before


def test_without_names_the_strongest_genes_are_drawn(run: Path) -> None:
    scores = read_scores(run)
    # PCC is equal but for the gene without counts, so means decide.
    assert [g.symbol for g in strongest_genes(scores)] == ["HLA-A", "EPCAM", "PIGR"]


PANEL = [Gene(f"ENSG{g:04d}", symbol) for g, symbol in enumerate(SYMBOLS)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("epcam", r"'epcam' is not in the run's panel; did you mean EPCAM"),
        ("EPCAN", r"did you mean EPCAM"),
        ("XYZ", r"see the run's panel.tsv"),
        ("SAA2", r"'SAA2' stands for ENSG0003, ENSG0004; give one of these ids"),
    ],
)
def test_genes_that_cannot_be_drawn_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_genes(PANEL, ["PIGR", name])


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("maps", "vst evaluate"),
        ("metrics.json", "vst evaluate"),
        ("per_gene.csv", "vst evaluate"),
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


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        draw_figures(tmp_path / "run")


def _no_format(run: Path) -> None:
    with h5py.File(run / "maps" / "P5.h5", "a") as f:
        f.attrs["format"] = "virchow_st.maps/9"


def _no_mask(run: Path) -> None:
    with h5py.File(run / "maps" / "P5.h5", "a") as f:
        del f["scored_mask"]


def _other_image(run: Path) -> None:
    with h5py.File(run / "maps" / "P5.h5", "a") as f:
        del f["image"]
        f["image"] = np.zeros((4, 4, 3), np.uint8)


def _no_hdf5(run: Path) -> None:
    (run / "maps" / "P5.h5").write_bytes(b"no")


def _torn_history(run: Path) -> None:
    path = run / "history.jsonl"
    path.write_text(path.read_text()[:-40])


def _no_column(run: Path) -> None:
    path = run / "per_gene.csv"
    path.write_text(path.read_text().replace("pcc_ceiling", "ceiling"))


def _other_metrics(run: Path) -> None:
    (run / "metrics.json").write_text('{"format": "x"}')


def _other_genes(run: Path) -> None:
    path = run / "per_gene.csv"
    path.write_text(path.read_text().replace("ENSG", "ENSMUSG"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_format, r"P5.h5: expected format 'virchow_st.maps/1'; got 'virchow_st.maps/9'"),
        (_no_mask, r"P5.h5: incomplete .*scored_mask"),
        (_other_image, r"P5.h5: expected rate and counts .* got .*\(4, 4, 3\)"),
        (_no_hdf5, r"P5.h5: cannot be read as HDF5"),
        (_torn_history, r"history.jsonl: line 18: "),
        (_no_column, r"per_gene.csv: column 'pcc_ceiling' is missing"),
        (_other_metrics, r"metrics.json: expected format 'virchow_st.metrics/1', got 'x'"),
        (_other_genes, r"P5.h5: gene ENSMUSG0002 of per_gene.csv is not in it"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(
    broken: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(broken)
    with pytest.raises(ConfigError, match=message) as error:
        draw_figures(broken)
    assert "\n" not in str(error.value)

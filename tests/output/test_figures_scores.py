"""Figures of scores: curves, bars, sparsity, calibration, and two runs against each other."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from figure_run import SYMBOLS, FigureRun, all_pictures, history_line

from virchow_st.errors import ConfigError
from virchow_st.output.figures import draw
from virchow_st.output.figures.curves import curves_figure
from virchow_st.output.figures.reliability import LEAST, Cells, Reliability
from virchow_st.output.figures.style import Picture
from virchow_st.run.blocks import read_blocks
from virchow_st.run.compare import compare_runs
from virchow_st.run.history import read_history
from virchow_st.run.maps import open_maps
from virchow_st.run.results import read_metrics

CASE = FigureRun()


def table(run: Path) -> dict[tuple[str, int], dict[str, float]]:
    rows = csv.DictReader((run / "per_gene.csv").read_text("utf-8").splitlines())
    return {
        (row["gene_id"], int(row["scale_um"])): {
            name: float(value) if value else np.nan
            for name, value in row.items()
            if name not in ("gene_id", "symbol", "scale_um")
        }
        for row in rows
    }


# --- training --------------------------------------------------------------------------------


def test_curves_are_those_of_the_history(drawn_run: Path) -> None:
    history, metrics = read_history(drawn_run), read_metrics(drawn_run)
    picture = curves_figure(history, metrics)
    pcc = next(a for a in picture.figure.axes if a.get_ylabel().startswith("PCC"))
    weights = next(a for a in picture.figure.axes if a.get_ylabel().startswith("weight"))
    np.testing.assert_array_equal(pcc.lines[0].get_ydata(), [e.validation_pcc[2] for e in history])
    for line, scale in zip(weights.lines, (2, 4, 8, 16), strict=False):
        np.testing.assert_array_equal(line.get_ydata(), [e.weights[scale] for e in history])
    diamonds = [line for line in pcc.lines if line.get_marker() == "D"]
    assert [d.get_ydata()[0] for d in diamonds] == [
        metrics["scales"][s]["pcc"] for s in ("2", "4", "8", "16")
    ]
    assert {d.get_xdata()[0] for d in diamonds} == {12}
    for axes in picture.figure.axes:
        assert list(axes.lines[-1].get_xdata()) == [12, 12]  # the best epoch
    assert picture.numbers["best_epoch"] == 12


def test_a_run_of_one_epoch_has_curves(drawn_run: Path, tmp_path: Path) -> None:
    for name in ("metrics.json", "per_gene.csv"):
        shutil.copy(drawn_run / name, tmp_path)
    (tmp_path / "history.jsonl").write_text(history_line(1))
    figure = curves_figure(read_history(tmp_path), read_metrics(tmp_path)).figure
    figure.canvas.draw()
    assert figure.axes[0].lines[0].get_marker() == "o"


# --- genes -----------------------------------------------------------------------------------


def test_bars_ceilings_and_nulls_are_those_of_the_table(
    drawn_run: Path, pictures: dict[str, list[Picture]]
) -> None:
    (picture,) = pictures["genes"]
    rows = table(drawn_run)
    drawn = picture.numbers["genes"]
    called = {f"{s} ({i})" if s == "SAA2" else s: i for i, s in zip(CASE.ids, SYMBOLS, strict=True)}
    ids = [called[gene["gene"]] for gene in drawn]
    assert sorted(ids) == CASE.ids
    at_8 = [rows[gene, 8]["pcc"] for gene in ids[:-1]]
    assert at_8 == sorted(at_8, reverse=True)
    for axes, scale in zip(picture.figure.axes, (8, 2), strict=True):
        bars = [bar.get_width() for bar in axes.patches]
        np.testing.assert_allclose(bars[:-1], [rows[g, scale]["pcc"] for g in ids[:-1]])
        assert ids[-1] == "ENSG0005"  # without a UMI: no bar, and said so
        assert bars[-1] == 0
        assert [t.get_text() for t in axes.texts] == ["undefined"]
        ceilings, nulls = axes.lines[-3].get_xdata(), axes.lines[-2].get_xdata()
        np.testing.assert_allclose(ceilings, [rows[g, scale]["pcc_ceiling"] for g in ids])
        np.testing.assert_allclose(nulls, [rows[g, scale]["pcc_shuffled"] for g in ids])
        for gene in drawn[:-1]:
            low, high = gene["scales"][str(scale)]["pcc_ci95"]
            assert low < gene["scales"][str(scale)]["pcc"] < high


def test_only_the_most_abundant_of_many_genes_get_bars(
    drawn_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw, "MOST_BARS", 3)
    of_run = all_pictures(drawn_run, None, n_genes=1)
    (picture,) = of_run["genes"]
    assert [gene["gene"] for gene in picture.numbers["genes"]] == ["HLA-A", "EPCAM", "PIGR"]
    assert "3 most abundant of 6 genes" in [t.get_text() for t in picture.figure.texts]


def test_a_single_patch_makes_no_interval(tmp_path: Path) -> None:
    case = FigureRun(lattice=[(0, 0)], symbols=["A"], means=[0.1])
    assert draw._intervals(read_blocks(case.write(tmp_path / "run")), case.ids) == {}


def test_calibration_of_many_genes_takes_them_evenly_by_abundance() -> None:
    from virchow_st.run.panel import Gene
    from virchow_st.run.results import GeneScore

    def score(i: int) -> GeneScore:
        return GeneScore(Gene(f"E{i}", f"G{i}"), 2, float(i), *([0.0] * 20))

    by_gene = {f"E{i}": {2: score(i)} for i in range(1000)}
    picked = [int(gene.id[1:]) for gene in draw._spread(by_gene, 11)]
    assert picked == [999, 900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert len(draw._spread(by_gene, 2000)) == 1000


def test_sparsity_is_the_share_of_bins_with_a_umi(
    drawn_run: Path, pictures: dict[str, list[Picture]]
) -> None:
    (picture,) = pictures["sparsity"]
    rows = table(drawn_run)
    for axes, scale in zip(picture.figure.axes, (2, 8), strict=True):
        x, y = axes.lines[1].get_data()
        drawn = CASE.ids[:5]
        np.testing.assert_allclose(x, [rows[g, scale]["nonzero"] for g in drawn])
        np.testing.assert_allclose(y, [rows[g, scale]["pcc"] for g in drawn])
        factor = scale // 2
        share = (np.add.reduceat(np.add.reduceat(CASE.counts[0], range(0, 384, factor), 0),
                                 range(0, 384, factor), 1) > 0)  # fmt: skip
        whole = np.lib.stride_tricks.sliding_window_view(CASE.mask, (factor, factor))
        known = whole[::factor, ::factor].all(axis=(2, 3))
        assert x[0] == pytest.approx(share[known].mean(), rel=1e-5)
        assert "EPCAM" in [t.get_text() for t in axes.texts]
        assert "not drawn: 1 without a UMI" in [t.get_text() for t in axes.texts]


# --- calibration -----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 8])
def test_points_of_the_calibration_curve_are_means_of_their_bins(
    drawn_run: Path, scale: int
) -> None:
    reliability = Reliability(scale, len(CASE.lattice))
    rates, counts = [], []
    with open_maps(drawn_run / "maps" / "P5.h5") as slide:
        cells = Cells(slide, scale)
        for gene in slide.genes:
            reliability.add(cells, *slide.layers(gene))
    for n in range(len(CASE.lattice)):
        rate, k, mask = CASE.patch(n)
        f = scale // 2
        known = mask.reshape(128 // f, f, 128 // f, f).all(axis=(1, 3))
        for values, to in ((rate, rates), (k, counts)):
            pooled = values.astype(float).reshape(-1, 128 // f, f, 128 // f, f).sum(axis=(2, 4))
            to.append(pooled[:, known].ravel())
    lam, k = np.concatenate(rates), np.concatenate(counts)
    curve = reliability.curve()
    assert curve.n_bins == lam.size
    assert curve.n_not_positive == (lam == 0).sum()
    assert curve.ratio == pytest.approx(lam.sum() / k.sum(), rel=1e-6)
    assert (curve.n >= LEAST).all()
    assert (curve.n * curve.predicted >= LEAST).all()
    # Rates of a point lie between those of its neighbours, so ranks give the same means.
    order = np.argsort(lam[lam > 0], kind="stable")
    ends = np.cumsum(curve.n)
    assert ends[-1] == order.size
    lam, k = lam[lam > 0][order], k[lam > 0][order]
    for i, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        assert curve.predicted[i] == pytest.approx(lam[start:end].mean(), rel=1e-5)
        assert curve.observed[i] == pytest.approx(k[start:end].mean(), rel=1e-5)
    # The rates are the true ones.
    inside = (curve.low <= curve.predicted) & (curve.predicted <= curve.high)
    assert inside.mean() > 0.7
    np.testing.assert_allclose(curve.observed, curve.predicted, rtol=0.25)


def test_negative_rates_are_counted_apart(drawn_run: Path) -> None:
    with open_maps(drawn_run / "maps" / "P5.h5") as slide:
        rate, counts = slide.layers(slide.genes[2])
        rate = np.where(np.arange(rate.shape[1]) < 100, np.float32(-0.1), rate)
        reliability = Reliability(2, len(CASE.lattice))
        reliability.add(Cells(slide, 2), rate, counts)
    curve = reliability.curve()
    left = CASE.mask[:, :100]
    assert curve.n_not_positive == left.sum()
    assert curve.observed_not_positive == CASE.counts[2][:, :100][left].sum()
    assert curve.n.sum() == CASE.mask.sum() - left.sum()
    assert (curve.predicted > 0).all()


def test_a_point_of_a_single_block_has_no_interval(drawn_run: Path) -> None:
    with open_maps(drawn_run / "maps" / "P5.h5") as slide:
        rate, counts = slide.layers(slide.genes[2])
        rate = np.full_like(rate, 0.5)
        rate[:128, :128] = 8.0
        reliability = Reliability(2, len(CASE.lattice))
        reliability.add(Cells(slide, 2), rate, counts)
    curve = reliability.curve()
    assert curve.predicted.tolist() == [0.5, 8.0]
    assert np.isnan(curve.high).tolist() == [False, True]


def test_nothing_predicted_is_no_curve(drawn_run: Path) -> None:
    with open_maps(drawn_run / "maps" / "P5.h5") as slide:
        rate, counts = slide.layers(slide.genes[5])
        reliability = Reliability(8, len(CASE.lattice))
        reliability.add(Cells(slide, 8), rate, counts)
    curve = reliability.curve()
    assert curve.n.size == 0
    assert curve.n_not_positive == curve.n_bins > 0
    assert np.isnan(curve.ratio)


# --- two runs --------------------------------------------------------------------------------


def test_two_runs_are_compared_gene_by_gene_and_block_by_block(
    drawn_run: Path, worse_run: Path, pictures: dict[str, list[Picture]]
) -> None:
    (picture,) = pictures["against"]
    pair = compare_runs([drawn_run, worse_run])["pairs"][0]
    assert picture.numbers["differences"] == pair["scales"]
    numbers, figure = picture.numbers, picture.figure
    assert numbers["runs"] == {
        "poisson": "decoder hist2st, loss poisson, epoch 12",
        "mse": "decoder hist2st, loss mse, epoch 12",
    }
    rows = table(drawn_run)
    for axes, name, scale in zip(
        figure.axes, ("pcc", "pcc", "d2_poisson"), (8, 2, 8), strict=False
    ):
        np.testing.assert_allclose(
            axes.lines[1].get_ydata(), [rows[g, scale][name] for g in CASE.ids[:5]]
        )
        assert axes.get_xlim() == axes.get_ylim()
        better = numbers["better"][f"{name}_{scale}"]
        assert f"A higher: {better['a']} of 5" in [t.get_text() for t in axes.texts]
    assert numbers["better"]["d2_poisson_8"] == {"a": 5, "b": 0}  # the truth against its half
    forest = figure.axes[4]
    dots = [line for line in forest.lines if line.get_marker() == "o"]
    for dot, scale in zip(dots, ("2", "4", "8", "16"), strict=True):
        at = numbers["differences"][scale]["d2_poisson"]
        assert dot.get_xdata()[0] == at["difference"] > 0
        assert dot.get_markerfacecolor() == "#0072b2"  # clear of 0, for A


def test_maps_of_two_runs_share_limits_and_show_their_own_rates(
    pictures: dict[str, list[Picture]],
) -> None:
    (picture,) = pictures["against"]
    shown = [axes.images[0] for axes in picture.figure.axes if axes.images]
    assert len(shown) == 8
    limits = picture.numbers["maps"]["colour_limits"]
    for four, limit in ((shown[:4], limits["whole"]), (shown[4:], limits["zoom"])):
        assert {image.get_clim() for image in four[1:]} == {(0, limit)}
    observed, ours, theirs = (image.get_array() for image in shown[1:4])
    worse = FigureRun(skill=0.4).rates[0].astype(float)
    for cells, values in (
        (observed, CASE.counts[0]), (ours, CASE.rates[0].astype(float)), (theirs, worse)
    ):  # fmt: skip
        pooled = values.reshape(96, 4, 96, 4).sum(axis=(1, 3))
        known = ~cells.mask
        np.testing.assert_allclose(cells[known], pooled[known], rtol=1e-5)


def test_runs_that_cannot_be_compared_are_refused(drawn_run: Path, tmp_path: Path) -> None:
    from virchow_st.output.figures import draw_figures

    other_panel = FigureRun(symbols=["A"], means=[0.1]).write(tmp_path / "panel")
    other_counts = FigureRun(seed=1).write(tmp_path / "counts")
    cases: list[tuple[Path, str]] = [
        (drawn_run, "--against: expected another run"),
        (other_panel, "expected the panel of .*got another of 1"),
        (other_counts, "expected the test patches and counts of"),
        (tmp_path / "none", "no such folder"),
    ]
    for other, message in cases:
        with pytest.raises(ConfigError, match=message) as error:
            draw_figures(drawn_run, against=other)
        assert "\n" not in str(error.value)
    assert not (drawn_run / "figures").exists()

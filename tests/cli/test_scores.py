"""The tables of `vst evaluate`, on a terminal and in a pipe."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from virchow_st.run.results import SCORES
from virchow_st_cli.console import Console
from virchow_st_cli.scores import print_comparison, print_scores, print_summary, short_names

SCALES = ("2", "4", "8", "16")


def figures(pcc: float, d2: float) -> dict[str, Any]:
    """Figures of one model; all but PCC and D² the same at every scale."""
    plain = dict.fromkeys(SCORES, 0.25)
    ci95 = {"pcc_ci95": [pcc - 0.02, pcc + 0.03], "d2_poisson_ci95": [d2 - 0.02, d2 + 0.03]}
    at = {
        **plain,
        "pcc": pcc,
        "d2_poisson": d2,
        "pcc_ceiling": 0.777,
        "pcc_of_ceiling": 0.5,
        **ci95,
        "pcc_partial_ci95": [0.24, 0.26],
    }
    return {scale: dict(at) for scale in SCALES}


def difference(value: float, low: float, high: float) -> dict[str, Any]:
    return {"difference": value, "ci95": [low, high], "p": 0.01}


def by_figure(pcc: dict[str, Any], d2: dict[str, Any]) -> dict[str, Any]:
    return {scale: {"pcc": pcc, "d2_poisson": d2} for scale in SCALES}


@pytest.fixture
def metrics() -> dict[str, Any]:
    clear, none = difference(0.1, 0.05, 0.15), difference(0.0, -0.01, 0.01)
    baselines = {
        "gene_mean": figures(0.0, 1e-15),
        "nuclear_density": figures(0.11, 0.05),
        "ridge": figures(0.2, 0.06),
        "total_umi": figures(0.5, 0.5),
    }
    return {
        "test_patients": ["P5"], "n_patches": 21, "n_genes": 50, "loss": "poisson",
        "bootstrap": {"block_um": 512, "n_blocks": 8, "draws": 1000},
        "scales": figures(0.31, 0.123), "baselines": baselines, "oracles": ["total_umi"],
        "differences": {name: by_figure(clear, none) for name in baselines},
    }  # fmt: skip


def shown(capfd: pytest.CaptureFixture[str], runs: dict[str, Any]) -> str:
    print_scores(Console(), runs)
    out, err = capfd.readouterr()
    assert err == ""
    return out


def row(text: str, label: str) -> list[str]:
    """Cells of the first row that begins with the label."""
    (line, *_) = [line for line in text.splitlines() if line.startswith(label)]
    return line.removeprefix(label).split()


def test_a_run_stands_beside_ceiling_nulls_and_baselines(metrics, capfd) -> None:
    text = shown(capfd, {"poisson": metrics})
    assert text.startswith("Test patient P5: 21 patches, 50 genes\n")
    assert row(text, "poisson") == ["0.310"] * 4
    assert row(text, "  95 % interval") == ["0.29..0.34"] * 4
    assert row(text, "  share of the ceiling") == ["50%"] * 4
    assert row(text, "  null: other patches") == ["0.250"] * 4
    assert row(text, "  null: map shifted") == ["0.250"] * 4
    assert row(text, "ceiling, given the noise") == ["0.777"] * 4
    assert row(text, "baseline ridge on tokens") == ["0.200"] * 4
    assert row(text, "baseline nuclear density") == ["0.110"] * 4
    assert row(text, "baseline gene mean") == ["0.000"] * 4
    assert row(text, "oracle   total UMI") == ["0.500"] * 4
    assert "1000 draws of" in text
    assert "8 blocks of 512 µm.\nNone is over patients" in text
    assert "poisson is below" not in text  # not even the oracle, which no model has to beat


def test_it_fits_eighty_columns_without_colour(metrics, capfd) -> None:
    low = copy.deepcopy(metrics)
    for scale in SCALES:
        low["scales"][scale] |= {"pcc_ci95": [-0.12, -0.08], "d2_poisson_ci95": [-0.22, -0.11]}
    text = shown(capfd, {"poisson": metrics, "hist2st-mse": low})
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "\x1b" not in text
    assert "…" not in text


def test_a_result_below_a_baseline_is_said_to_be(metrics, capfd) -> None:
    metrics["scales"]["8"] |= {"pcc": 0.19, "d2_poisson": -0.004}
    metrics["differences"]["ridge"]["8"] = {
        "pcc": difference(-0.01, -0.03, -0.002), "d2_poisson": difference(-0.064, -0.1, 0.02),
    }  # fmt: skip
    text = shown(capfd, {"poisson": metrics})
    assert row(text, "baseline ridge on tokens") == ["0.200", "0.200", "!0.200", "0.200"]
    assert "! poisson is below ridge on tokens in PCC: -0.010 at 8 µm\n" in text
    assert "! poisson is below ridge on tokens in D²: -0.064 at 8 µm (unclear)\n" in text
    assert "! poisson is below gene mean in D²: " in text
    assert "below total UMI" not in text


def test_undefined_figures_are_dashes(metrics, capfd) -> None:
    for scale in SCALES:
        metrics["scales"][scale] |= dict.fromkeys(metrics["scales"][scale])
        for name in metrics["differences"]:
            metrics["differences"][name][scale]["pcc"] = dict.fromkeys(("difference", "ci95", "p"))
    text = shown(capfd, {"poisson": metrics})
    for label in ("poisson", "  95 % interval", "  null: map shifted", "ceiling, given the noise"):
        assert row(text, label) == ["–"] * 4


def test_few_blocks_slides_and_truth_are_mentioned(metrics, capfd) -> None:
    metrics["bootstrap"] = {"block_um": 256, "n_blocks": 4, "draws": 1000}
    metrics["slides"] = {"P5-2": figures(0.44, 0.1), "P5-3": figures(0.28, 0.1)}
    metrics["truth"] = {s: {"pcc_with_truth": 0.666, "pcc_of_truth": 0.755} for s in SCALES}
    text = shown(capfd, {"poisson": metrics})
    assert "4 blocks of 256 µm; so few make them rough." in text
    assert row(text, "  on P5-2") == ["0.440"] * 4
    assert row(text, "  on P5-3") == ["0.280"] * 4
    assert row(text, "  with the true rate") == ["0.666"] * 4
    assert row(text, "  the true rate itself") == ["0.755"] * 4
    assert "what H&E shows" not in text  # results before it was measured
    for of_scale in metrics["truth"].values():
        of_scale["pcc_of_shown"] = 0.512
    assert row(shown(capfd, {"poisson": metrics}), "  what H&E shows of it") == ["0.512"] * 4


def test_scores_at_the_slides_own_depth_stand_beside_those_without(metrics, capfd) -> None:
    at_depth = {"pcc": 0.3, "d2_poisson": 0.456, "calibration": 0.987}
    assert "at the slide's depth" not in shown(capfd, {"poisson": metrics})
    metrics["exposure"] = {"with_depth": dict.fromkeys(SCALES, at_depth)}
    lines = [
        line.split()[-4:]
        for line in shown(capfd, {"poisson": metrics}).splitlines()
        if "at the slide's depth" in line
    ]
    assert lines == [["0.456"] * 4, ["0.987"] * 4]


@pytest.mark.parametrize(("n", "is_few"), [(2, True), (3, True), (4, False)])
def test_no_interval_is_given_over_few_patients(n: int, is_few: bool, capfd) -> None:
    patients = [f"P{i}" for i in range(n)]
    spread = {"mean": 0.4, "std": 0.1, "folds": dict.fromkeys(patients, 0.4)}
    scales = {scale: dict.fromkeys(SCORES, spread) for scale in SCALES}
    summary = {
        "scales": scales, "baselines": {"ridge": scales}, "decoder": "linear", "loss": "poisson",
        "folds": {patient: {} for patient in patients}, "encoder": {"name": "stain"},
        "genes_in_all_folds": 9,
    }  # fmt: skip
    print_summary(Console(), summary)
    text = " ".join(capfd.readouterr().out.split())
    assert "a spread between patients and not an interval" in text
    assert (f"{n} patients are too few for an interval over patients" in text) == is_few
    assert ".." not in text  # the form of an interval


def test_pairs_say_which_is_better(capfd) -> None:
    scales = by_figure(difference(0.1, 0.05, 0.15), difference(-0.1, -0.15, -0.05))
    scales["16"]["pcc"] = difference(0.01, -0.01, 0.03)
    scales["16"]["d2_poisson"] = dict.fromkeys(("difference", "ci95", "p"))
    pair = {"a": "runs/x", "b": "runs/y", "scales": scales}
    print_comparison(Console(), {"pairs": [pair]}, {"runs/x": "x", "runs/y": "y"})
    text = capfd.readouterr().out
    assert "A = x, B = y" in text
    better = [line.split()[1:] for line in text.splitlines() if line.startswith("  better")]
    assert better == [["A", "A", "A", "unclear"], ["B", "B", "B", "unclear"]]
    assert row(text, "PCC, A − B") == ["+0.100"] * 3 + ["+0.010"]
    assert row(text, "D², A − B") == ["-0.100"] * 3 + ["–"]
    assert "-0.150..-0.050" in text
    assert max(map(len, text.splitlines())) <= 80


def test_runs_are_called_by_their_folders_unless_these_repeat() -> None:
    assert short_names([Path("a/x"), Path("b/y")]) == {"a/x": "x", "b/y": "y"}
    assert short_names([Path("a/x"), Path("b/x")]) == {"a/x": "a/x", "b/x": "b/x"}

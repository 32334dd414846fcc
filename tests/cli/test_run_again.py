"""Commands on an existing run: it is evaluated and trained again, or refused."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_place import Vst

from virchow_st.predict import load


@pytest.fixture
def run(stain_run: Path, tmp_path: Path) -> Path:
    """A copy of an evaluated run, for commands to work on."""
    return Path(shutil.copytree(stain_run, tmp_path / "run"))


def test_the_truth_of_a_simulated_slide_checks_the_ceiling(
    vst: Vst, run: Path, simulated: Path
) -> None:
    answer = vst("evaluate", run, "--device", "cpu", "--truth", simulated / "P5" / "truth.h5")
    assert answer.code == 0, answer.err
    metrics = json.loads((run / "metrics.json").read_text())
    for scale in ("2", "4", "8", "16"):
        truth, figures = metrics["truth"][scale], metrics["scales"][scale]
        assert truth["pcc_of_truth"] == pytest.approx(figures["pcc_ceiling"], abs=0.03)
        assert truth["pcc_with_truth"] > figures["pcc"]  # the truth has no noise to miss
        assert truth["pcc_of_shown"] == truth["pcc_of_truth"]  # nothing is hidden here
    assert f"{metrics['truth']['8']['pcc_with_truth']:.3f}" in answer.out
    seams = metrics["seams_of_truth"]
    assert seams["token"] == pytest.approx(1, abs=0.05)  # no grid in the truth
    assert f"of the true rates token {seams['token']:.2f}, patch {seams['patch']:.2f}" in answer.out
    wrong = vst("evaluate", run, "--truth", simulated / "P1" / "truth.h5")
    assert wrong.code == 2
    assert "simulated P5; got one of P1" in wrong.err
    assert (run / "metrics.json").is_file()  # refused before anything was touched


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_decoder_that_predicts_nan_is_refused_and_changes_no_results(
    vst: Vst, run: Path, monkeypatch: pytest.MonkeyPatch, evaluated: bool
) -> None:
    decode = load.decode
    if not evaluated:
        for name in ("metrics.json", "per_gene.csv", "blocks.npz", "overview.h5"):
            (run / name).unlink()
        shutil.rmtree(run / "maps")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def broken(*arguments: Any) -> torch.Tensor:
        output = decode(*arguments)
        output[-1, 3, 7, 9] = np.nan
        return output

    monkeypatch.setattr(load, "decode", broken)
    answer = vst("evaluate", run, "--device", "cpu", "--quiet")
    assert answer.code == 2
    symbol = (run / "panel.tsv").read_text().splitlines()[4].split("\t")[1]
    assert f"got nan for {symbol}, and such rates for 1 of 6 genes" in answer.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_evaluating_again_gives_the_same(vst: Vst, run: Path) -> None:
    names = ("metrics.json", "per_gene.csv", "blocks.npz")
    before = [(run / name).read_bytes() for name in names]
    answer = vst("evaluate", run, "--device", "cpu")
    assert answer.code == 0
    assert [(run / name).read_bytes() for name in names] == before
    pcc = json.loads((run / "metrics.json").read_text())["scales"]["8"]["pcc"]
    assert f"{pcc:.3f}" in answer.out
    assert "…" not in answer.out
    assert "\x1b" not in answer.out + answer.err


def test_training_again_refuses_and_a_config_repeats_it(
    vst: Vst, run: Path, tmp_path: Path
) -> None:
    config = run / "config.toml"
    again = vst("train", "--config", config, "--run", run)
    assert again.code == 2
    assert "already there" in again.err
    repeat = tmp_path / "repeat"
    answer = vst("train", "--config", config, "--run", repeat, "--epochs", 2)
    assert answer.code == 0, answer.err
    assert (repeat / "split.json").read_bytes() == (run / "split.json").read_bytes()
    assert (repeat / "panel.tsv").read_bytes() == (run / "panel.tsv").read_bytes()
    kept = tomllib.loads((repeat / "config.toml").read_text("utf-8"))
    assert kept == {**tomllib.loads(config.read_text("utf-8")), "epochs": 2}

"""A run with an exposure: what it starts from, what it writes, and how it is scored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.evaluation.evaluate import evaluate_run
from virchow_st.run.exposure import EXPOSURE, CohortExposure
from virchow_st.run.panel import Panel
from virchow_st.run.split import Member
from virchow_st.run.state import read_state
from virchow_st.store.reader import open_store
from virchow_st.training.closed_form import regress_on_tokens
from virchow_st.training.dataset import PatchDataset
from virchow_st.training.rows import rows_of
from virchow_st.training.statistics import training_statistics
from virchow_st.training.train import train


def of_first_genes(stores: dict[str, Path]) -> tuple[list, Panel, list[Member]]:
    opened = [open_store(path) for path in stores.values()]
    genes = opened[0].genes
    order = np.argsort(-genes.totals)[:6]
    panel = Panel(tuple(genes.ids[g] for g in order), tuple(genes.symbols[g] for g in order))
    members = [Member(i, p) for i, store in enumerate(opened) for p in range(len(store))]
    return opened, panel, members


def test_statistics_rows_and_regression_are_per_exposure(stores: dict[str, Path]) -> None:
    opened, panel, members = of_first_genes(stores)
    exposure = CohortExposure.of_training("auto", opened, range(len(opened)))
    plain = PatchDataset(opened, panel)
    exposed = PatchDataset(opened, panel, exposure=exposure)
    total = sum(exposed.exposure(m).sum(dtype=np.float64) for m in members)
    n_tissue = sum(plain.exposure(m).sum(dtype=np.float64) for m in members)
    mine, theirs = training_statistics(exposed, members), training_statistics(plain, members)
    np.testing.assert_allclose(mine.rate * total, theirs.rate * n_tissue, rtol=1e-9)
    np.testing.assert_array_equal(mine.std, theirs.std)

    rows, of_plain = rows_of(exposed, members, seed=0), rows_of(plain, members, seed=0)
    np.testing.assert_array_equal(rows.count, of_plain.count)
    maps = [exposed.exposure(m).reshape(16, 8, 16, 8).sum((1, 3)).ravel() for m in members]
    expected = np.array([maps[m][c] for m, c in zip(rows.member, rows.cell, strict=True)])
    np.testing.assert_allclose(rows.exposure, expected, rtol=1e-5)

    # Twice the exposure everywhere halves the rates and changes nothing else.
    twice = CohortExposure("auto", exposure.reference / 2, exposure.slides)
    doubled = PatchDataset(opened, panel, exposure=twice)
    a = regress_on_tokens(exposed, members, mine, "poisson", 0)
    b = regress_on_tokens(doubled, members, training_statistics(doubled, members), "poisson", 0)
    np.testing.assert_allclose(a.intercept - b.intercept, np.log(2), atol=1e-4)
    np.testing.assert_allclose(a.weights, b.weights, atol=1e-4)


@pytest.fixture
def config(stores: dict[str, Path]) -> TrainConfig:
    return TrainConfig(
        stores=tuple(str(path) for path in stores.values()),
        test_patient=open_store(list(stores.values())[-1]).patient,
        panel="top:8",
        decoder="linear",
        exposure="auto",
        epochs=1,
        device="cpu",
    )


def test_a_run_keeps_its_exposure_and_is_scored_with_it(
    config: TrainConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(run, config)
    content = json.loads((run / EXPOSURE).read_text())
    assert [slide["store"] for slide in content["slides"]] == list(range(len(config.stores) - 1))
    assert "exposure_xxh64" in read_state(run / "checkpoints" / "best")
    train(run, config, resume=True)
    metrics = evaluate_run(run, "cpu")
    found = metrics["exposure"]
    assert metrics["protocol"]["exposure"] == found["mode"] == "auto"
    (slide,) = found["slides"].values()
    # At the test slide's own depth, Λ is the depth times what it is without.
    for scale, scores in found["with_depth"].items():
        without = metrics["scales"][scale]
        assert scores["pcc"] == pytest.approx(without["pcc"], rel=1e-9)
        assert scores["calibration"] == pytest.approx(
            without["calibration"] * slide["relative_depth"], rel=1e-6
        )
        assert scores["d2_poisson"] != without["d2_poisson"]
    (run / EXPOSURE).unlink()
    with pytest.raises(ConfigError, match="exposure.json"):
        evaluate_run(run, "cpu")


def test_a_run_without_exposure_has_no_file_of_it(config: TrainConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, replace(config, exposure="none"))
    assert not (run / EXPOSURE).exists()
    assert "exposure_xxh64" not in read_state(run / "checkpoints" / "best")
    metrics = evaluate_run(run, "cpu")
    assert "exposure" not in metrics
    assert metrics["protocol"]["exposure"] == "none"


def test_squared_error_takes_no_exposure(config: TrainConfig) -> None:
    for exposure in ("auto", "depth"):
        with pytest.raises(ConfigError, match="z-scores know no exposure"):
            replace(config, loss="mse", exposure=exposure)

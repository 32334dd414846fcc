"""Evaluation of a test patient with two slides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from old_run import without_hashes
from tiny_store import write_store

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.evaluation.evaluate import check_comparable, evaluate_run
from virchow_st.run.results import (
    read_metrics,
)
from virchow_st.training import schedule
from virchow_st.training import train as training


@pytest.fixture(scope="module")
def run_of_two_slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run whose test patient has two slides of 4 and 3 patches."""
    folder = tmp_path_factory.mktemp("two_slides")
    slides = (("A1", "A", 5), ("T1", "T", 4), ("T2", "T", 3))
    for seed, (slide, patient, n_patches) in enumerate(slides):
        write_store(folder / f"{slide}.vst", patient, n_patches, seed=seed, slide=slide)
    config = TrainConfig(
        stores=tuple(str(folder / f"{slide}.vst") for slide, _, _ in slides),
        test_patient="T", panel="top:3", decoder="linear", epochs=1, batch_size=2, accumulate=1,
        lr=5e-3, warmup_epochs=0, device="cpu",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "_LEAST_STEPS_PER_EPOCH", 2)
        training.train(folder / "run", config)
        training.train(folder / "turned", replace(config, test_patient="A"))
    return folder / "run"


def test_slides_of_a_patient_are_scored_alone_and_together(run_of_two_slides: Path) -> None:
    metrics = evaluate_run(run_of_two_slides, "cpu")
    assert read_metrics(run_of_two_slides) == metrics
    assert metrics["test_patients"] == ["T"]
    assert metrics["n_patches"] == 7
    assert metrics["bootstrap"] == {"block_um": 256, "n_blocks": 7, "draws": 1000}
    bins = []
    for name in ("T-1", "T-2"):
        with h5py.File(run_of_two_slides / "maps" / f"{name}.h5") as f:
            mask = f["scored_mask"][:]
            bins.append(np.stack([f[x][:].astype(float)[:, mask] for x in ("rate", "counts")]))
        figures = metrics["slides"][name]["2"]
        assert figures["n_bins"] == bins[-1].shape[2]
        assert figures["coverage"] == 1.0
        assert figures["pcc"] == pytest.approx(mean_pcc(bins[-1]), abs=1e-6)
    assert metrics["scales"]["2"]["n_bins"] == sum(b.shape[2] for b in bins)
    both = np.concatenate(bins, axis=2)
    assert metrics["scales"]["2"]["pcc"] == pytest.approx(mean_pcc(both), abs=1e-6)


def mean_pcc(bins: np.ndarray) -> float:
    """Mean over genes of Pearson's r, from (2, G, n) rates and counts."""
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*bins, strict=True)]))


def test_one_truth_does_not_do_for_two_slides(run_of_two_slides: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the test patient has 2; leave out --truth"):
        evaluate_run(run_of_two_slides, "cpu", truth=tmp_path / "truth.h5")


def test_runs_are_refused_before_work_that_cannot_be_compared(run_of_two_slides: Path) -> None:
    run, turned = run_of_two_slides, run_of_two_slides.with_name("turned")
    with pytest.raises(ConfigError, match="expected each once"):
        check_comparable([run, run.parent / "." / "run"])
    # The panels may differ as well, being chosen on other patients: give both one.
    (turned / "panel.tsv").write_bytes((run / "panel.tsv").read_bytes())
    with pytest.raises(ConfigError, match="turned: expected the test patches and counts of"):
        check_comparable([run, turned])
    without_hashes(turned)
    lines = (run / "panel.tsv").read_text().splitlines(keepends=True)
    (turned / "panel.tsv").write_text("".join([lines[0], lines[2], lines[1], lines[3]]))
    with pytest.raises(ConfigError, match="turned: expected the panel of"):
        check_comparable([run, turned])

"""Every patient is the test patient once: folds, their summary, and interruptions."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from dying import Killed
from tiny_store import write_store
from tiny_training import PATIENTS, few_steps, tiny_config, two_patients

from virchow_st.config import CohortConfig, TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.evaluation import leave_one_out as module
from virchow_st.evaluation.leave_one_out import STATE, leave_one_out, summarise
from virchow_st.predict.load import load_run
from virchow_st.run.split import Split, read_split
from virchow_st.settings import from_toml
from virchow_st.training import schedule

LEAST_STEPS = schedule._LEAST_STEPS_PER_EPOCH


@pytest.fixture(autouse=True, scope="module")
def quick():
    with few_steps(2):
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    stores = two_patients(tmp_path_factory.mktemp("stores"))
    return tiny_config(stores, leave_one_out=True, test_patient="", epochs=1, warmup_epochs=0)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """Killed while the second fold is evaluated, then resumed."""
    path = tmp_path_factory.mktemp("runs") / "run"
    real, seen = module.evaluate_run, []

    def dying(fold, *rest):
        seen.append(fold.name)
        if len(seen) == 2:
            raise Killed
        return real(fold, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "evaluate_run", dying)
        with pytest.raises(Killed):
            leave_one_out(path, config)
    assert seen == ["fold-P1", "fold-P5"]
    assert not (path / "summary.json").exists()
    with pytest.MonkeyPatch.context() as patch:  # what is trained and evaluated stays as it is
        patch.setattr(module, "train", None)
        patch.setattr(
            module, "evaluate_run", lambda fold, *rest: seen.append(fold) or real(fold, *rest)
        )
        leave_one_out(path, config, resume=True)
    assert seen[2:] == [path / "fold-P5"]
    return path


@pytest.fixture(scope="module")
def summary(run):
    return json.loads((run / "summary.json").read_text("utf-8"))


def test_every_patient_is_the_test_once(run, config):
    assert {p.name for p in run.iterdir()} == {"config.toml", "summary.json", "fold-P1", "fold-P5"}
    assert from_toml(TrainConfig, run / "config.toml") == config
    for patient in PATIENTS:
        fold = run / f"fold-{patient}"
        own = replace(config, leave_one_out=False, test_patient=patient)
        assert from_toml(TrainConfig, fold / "config.toml") == own
        metrics = json.loads((fold / "metrics.json").read_text("utf-8"))
        assert metrics["test_patients"] == [patient]
        split = Split.read(fold / "split.json")
        trained = {PATIENTS[m.store] for m in split.train + split.validation}
        assert trained == set(PATIENTS) - {patient}


def test_summary_is_the_folds_figures(run, summary):
    assert summary["format"] == "virchow_st.summary/1"
    assert list(summary["folds"]) == list(PATIENTS)
    metrics = {
        p: json.loads((run / f"fold-{p}" / "metrics.json").read_text("utf-8")) for p in PATIENTS
    }
    for scale in ("2", "4", "8", "16"):
        for name in ("pcc", "d2_poisson", "ssim", "calibration"):
            found = summary["scales"][scale][name]
            values = {p: metrics[p]["scales"][scale][name] for p in PATIENTS}
            assert found["folds"] == values
            assert found["mean"] == pytest.approx(np.mean(list(values.values())))
            assert found["std"] == pytest.approx(np.std(list(values.values()), ddof=1))
        ridge = summary["baselines"]["ridge"][scale]["pcc"]["folds"]
        assert ridge == {p: metrics[p]["baselines"]["ridge"][scale]["pcc"] for p in PATIENTS}
    for patient in PATIENTS:
        fold = summary["folds"][patient]
        assert fold["run"] == f"fold-{patient}"
        assert fold["split_xxh64"] == read_split(run / fold["run"] / "split.json")["xxh64"]
        assert fold["n_patches"] == metrics[patient]["n_patches"]
    panels = [set(load_run(run / f"fold-{p}", "cpu").panel.ids) for p in PATIENTS]
    assert summary["genes_in_all_folds"] == len(panels[0] & panels[1])


def test_figures_that_a_fold_has_not_are_left_out():
    spread = module._spread
    assert spread({"A": 1.0, "B": None, "C": 3.0}) == {
        "mean": 2.0, "std": pytest.approx(2**0.5), "folds": {"A": 1.0, "B": None, "C": 3.0},
    }  # fmt: skip
    assert spread({"A": 1.0, "B": None})["std"] is None
    assert spread({"A": None})["mean"] is None


def test_a_finished_one_is_only_summed_up(run, config, summary, monkeypatch):
    monkeypatch.setattr(module, "train", None)
    monkeypatch.setattr(module, "evaluate_run", None)
    (run / "summary.json").unlink()
    assert leave_one_out(run, config, resume=True) == summary
    assert summarise({p: run / f"fold-{p}" for p in PATIENTS}) == summary


@pytest.mark.slow
def test_folds_on_workers_are_those_of_one_process(config, tmp_path):
    with pytest.MonkeyPatch.context() as patch:  # as in the workers, which import it anew
        patch.setattr(schedule, "_LEAST_STEPS_PER_EPOCH", LEAST_STEPS)
        leave_one_out(tmp_path / "alone", config)
    on_workers = CohortConfig(executor="local", workers=2)
    leave_one_out(tmp_path / "run", config, cohort=on_workers)
    for name in ("summary.json", "fold-P1/best_metrics.json", "fold-P5/per_gene.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    # One fold lost its scores; another was begun and has to fail, since its panel was changed.
    (tmp_path / "run/fold-P1/metrics.json").unlink()
    (tmp_path / "run/fold-P5/metrics.json").unlink()
    with open(tmp_path / "run/fold-P5/panel.tsv", "a", encoding="utf-8") as panel:
        panel.write("E9\tGENE9\n")
    with pytest.raises(ConfigError, match=r"1 of 2 folds are not finished; the first, P5: .*panel"):
        leave_one_out(tmp_path / "run", config, resume=True, cohort=on_workers)
    assert (tmp_path / "run/fold-P1/metrics.json").is_file()
    lines = (tmp_path / "run" / STATE / "cohort.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["done", "failed"]


def test_executors_go_with_leave_one_out(vst, config, tmp_path):
    answer = vst("train", *config.stores, "--run", tmp_path / "r", "--test-patient", "P5",
                 "--executor", "local")  # fmt: skip
    assert answer.code == 2
    assert "--executor: expected --leave-one-out, whose folds are shared over workers" in answer.err


def test_refusals(run, config, tmp_path):
    with pytest.raises(ConfigError, match="is already there; give another --run, or --resume"):
        leave_one_out(run, config)
    with pytest.raises(ConfigError, match="was begun with other options"):
        leave_one_out(run, replace(config, lr=1e-3), resume=True)
    with pytest.raises(ConfigError, match="nothing to resume there"):
        leave_one_out(tmp_path / "new", config, resume=True)
    with pytest.raises(ConfigError, match="expected it without a test patient"):
        replace(config, test_patient="P5")
    with pytest.raises(ConfigError, match="all stores are of P1"):
        leave_one_out(tmp_path / "new", replace(config, stores=config.stores[:1]))
    # The same slide as two patients': it would train in one fold and be tested in it too.
    twin = write_store(tmp_path / "twin.vst", "P9", 5, n_genes=4, seed=0, columns=5)
    with pytest.raises(ConfigError, match=r"twin\.vst: holds the same slide as .*P1\.vst"):
        leave_one_out(tmp_path / "new", replace(config, stores=(*config.stores, str(twin.path))))
    assert not (tmp_path / "new").exists()


def test_the_command_prints_the_table(vst, run, config, monkeypatch):
    answer = vst("train", "--run", run, "--resume", "--quiet")
    assert answer.code == 0, answer.err
    assert "2 folds: linear, poisson, on tiny" in answer.out
    rows = {line.strip().split("  ")[0]: line for line in answer.out.splitlines()}
    assert rows["PCC"].count("±") == 4
    for patient in PATIENTS:
        assert rows[patient].count("0.") == 4
    assert "summary.json" in answer.out.splitlines()[-1]
    assert max(map(len, answer.out.splitlines()[:-2])) <= 80

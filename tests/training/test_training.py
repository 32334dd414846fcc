"""Training as a whole: it learns, resumes to the same result, and refuses what cannot work."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from dying import DiesAfterEpoch, Killed
from tiny_training import few_steps, history, tiny_config, two_patients

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.models.decoders.variation import variations
from virchow_st.models.losses.balance import GradNorm
from virchow_st.predict.load import load_run
from virchow_st.run.panel import Panel, choose_panel
from virchow_st.run.split import Split
from virchow_st.settings import from_toml
from virchow_st.store.reader import open_store
from virchow_st.training import learner
from virchow_st.training import train as training
from virchow_st.training.train import train

STEPS = 3  # optimiser steps an epoch


@pytest.fixture(autouse=True, scope="module")
def quick():
    with few_steps(STEPS):
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two patients whose tokens tell their counts; a decoder that learns it in seconds."""
    return tiny_config(two_patients(tmp_path_factory.mktemp("stores")), epochs=3)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    train(path, config)
    return path


def same_checkpoints(a, b):
    return all(
        (a / "checkpoints" / name).read_bytes() == (b / "checkpoints" / name).read_bytes()
        for which in ("last", "best")
        for name in (f"{which}/tensors.safetensors", f"{which}/state.json")
    )


def test_it_learns(run):
    lines = history(run)
    state = json.loads((run / "checkpoints" / "last" / "state.json").read_text("utf-8"))
    untrained = dict(zip(("2", "4", "8", "16"), state["first_losses"], strict=True))
    for scale in ("2", "16"):
        assert lines[-1]["validation"]["loss"][scale] < untrained[scale]
        assert lines[-1]["train"]["loss"][scale] < lines[0]["train"]["loss"][scale]
    assert lines[-1]["validation"]["score"] < 0.9  # below the gene means it starts from
    assert lines[-1]["validation"]["pcc"]["16"] > 0.5
    best = load_run(run, "cpu")
    store = open_store(best.config.stores[1])
    rates = best.predict(store[0])
    counts = store[0].counts(best.panel.indices(store)).toarray().reshape(rates.shape)
    pooled = [x.reshape(3, 16, 8, 16, 8).sum((2, 4)) for x in (rates, counts)]
    assert np.corrcoef(pooled[0][0].ravel(), pooled[1][0].ravel())[0, 1] > 0.5


def test_history_has_the_documented_keys(run):
    lines = history(run, with_times=True)
    assert [x["epoch"] for x in lines] == [1, 2, 3]
    assert len({x["step"] / x["epoch"] for x in lines}) == 1
    scales = {"2", "4", "8", "16"}
    for x in lines:
        assert set(x) == {
            "epoch", "step", "lr", "train", "weights", "validation", "best", "seconds",
            "patches_per_s",
        }  # fmt: skip
        assert set(x["train"]) == {"loss"}
        assert set(x["validation"]) == {"loss", "pcc", "score"}
        for values in (x["train"]["loss"], x["validation"]["loss"], x["validation"]["pcc"]):
            assert set(values) == scales
        assert sum(x["weights"].values()) == pytest.approx(4, abs=1e-4)
        assert min(x["weights"].values()) > 0
        assert math.isfinite(x["validation"]["score"])


def test_run_directory(run, config):
    assert {p.name for p in run.iterdir()} - {"tensorboard"} == {
        "config.toml", "split.json", "panel.tsv", "appearance.json", "history.jsonl", "checkpoints",
        "best_metrics.json",
    }  # fmt: skip
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"last", "best"}
    assert from_toml(TrainConfig, run / "config.toml") == config
    assert len(Panel.read(run / "panel.tsv")) == 3
    split = Split.read(run / "split.json")
    assert {m.store for m in split.train + split.validation} == {0}
    assert {m.store for m in split.test} == {1}
    best = json.loads((run / "best_metrics.json").read_text("utf-8"))
    line = history(run)[best["epoch"] - 1]
    assert line["best"]
    assert best["loss"] == line["validation"]["loss"]
    assert best["score"] == min(x["validation"]["score"] for x in history(run))


def test_learning_rate_warms_up_and_decays(run, config):
    lines = history(run)
    assert lines[0]["lr"] == pytest.approx(config.lr)  # the last step of the warm-up
    assert config.lr > lines[1]["lr"] > lines[2]["lr"] > 0
    assert lines[2]["lr"] < 0.1 * config.lr


def test_same_seed_same_run_and_another_seed_another(run, config, tmp_path):
    train(tmp_path / "again", config)
    assert history(tmp_path / "again") == history(run)
    assert same_checkpoints(tmp_path / "again", run)
    train(tmp_path / "other", replace(config, seed=1, epochs=1))
    assert history(tmp_path / "other")[0]["train"] != history(run)[0]["train"]


@pytest.mark.parametrize("epoch", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_resumed_equals_uninterrupted_bit_for_bit(run, config, tmp_path, epoch):
    path = tmp_path / "run"
    with pytest.raises(Killed):
        train(path, config, progress=DiesAfterEpoch(epoch))
    assert len(history(path)) == epoch
    train(path, config, resume=True)
    assert history(path) == history(run)
    assert same_checkpoints(path, run)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, STEPS + 3])
def test_killed_in_the_middle_of_an_epoch(run, config, tmp_path, monkeypatch, step):
    """At a step of epoch 1 (nothing but the beginning is saved) and of epoch 2."""
    path = tmp_path / "run"
    real, calls = torch.optim.AdamW.step, []

    def dying(self, *args):
        calls.append(self)
        if len(calls) == step:
            raise Killed
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", dying)
        with pytest.raises(Killed):
            train(path, config)
    train(path, config, resume=True)
    assert history(path) == history(run)
    assert same_checkpoints(path, run)


@pytest.mark.slow
def test_killed_after_the_history_and_before_the_checkpoint(run, config, tmp_path, monkeypatch):
    path = tmp_path / "run"
    real, calls = training.Trainer.save, []

    def dying(self, *args, **kwargs):
        calls.append(self.epoch)
        if self.epoch == 2:
            raise Killed
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "save", dying)
        with pytest.raises(Killed):
            train(path, config)
    assert calls == [0, 1, 2]
    assert len(history(path)) == 2
    train(path, config, resume=True)
    assert [x["epoch"] for x in history(path)] == [1, 2, 3]
    assert same_checkpoints(path, run)


def test_resuming_a_finished_run_changes_nothing(run, config):
    before = (run / "history.jsonl").read_bytes()
    train(run, config, resume=True)
    assert (run / "history.jsonl").read_bytes() == before


def test_accumulated_batches_are_one_large_batch(config, monkeypatch):
    """Weighted by their patches, a short last batch included."""
    monkeypatch.setattr(learner, "_MAX_GRADIENT_NORM", math.inf)
    weights = []
    for batch_size, accumulate in ((4, 1), (3, 2)):
        changed = replace(
            config, batch_size=batch_size, accumulate=accumulate, balance="equal", epochs=1,
            stain_variation=0.0,
        )  # fmt: skip
        trainer = make_trainer(changed)
        trainer.epoch_members = trainer.split.train  # four patches: 4, or 3 and 1
        trainer.schedule = replace(trainer.schedule, steps_per_epoch=1)
        trainer.epoch = 1
        trainer.learner.optimizer = torch.optim.SGD(trainer.learner.parameter_groups())
        trainer.train_epoch()
        weights.append(trainer.learner.decoder.head.bias.detach().clone())
    torch.testing.assert_close(*weights)


def test_variation_is_what_was_asked_for(config):
    for decoder in ("linear", "guided"):
        made = make_trainer(replace(config, decoder=decoder, stain_variation=0.3)).learner.decoder
        assert {variation.amount for variation in variations(made)} == {0.3}


def make_trainer(config):
    stores = [open_store(path) for path in config.stores]
    split = training.split_patients(stores, config.test_patient, config.seed)
    panel = choose_panel(config.panel, stores[:1], stores[1:])
    dataset = training.PatchDataset(stores, panel)
    statistics = training.training_statistics(dataset, split.train)
    return training.Trainer(config, dataset, split, statistics, torch.device("cpu"))


def test_validation_figures_are_numpys(config):
    trainer = make_trainer(config)
    trainer.epoch = 1
    trainer.train_epoch()
    _, pcc = trainer.validate()
    dataset, members = trainer.dataset, trainer.split.validation
    (batch,) = dataset.batches(members, 99)
    with torch.no_grad():
        output = trainer.learner.decoder(torch.from_numpy(batch.tokens).float(), None)
    rates = trainer.learner.objective.rate(output).numpy()
    for scale, found in zip((2, 4, 8, 16), pcc.tolist(), strict=True):
        f, n = scale // 2, 256 // scale
        whole = batch.tissue_mask.reshape(-1, n, f, n, f).all((2, 4))
        per_gene = [
            np.corrcoef(
                *(
                    x[:, g].astype(float).reshape(-1, n, f, n, f).sum((2, 4))[whole]
                    for x in (rates, batch.counts)
                )
            )[0, 1]
            for g in range(3)
        ]
        assert found == pytest.approx(np.mean(per_gene), abs=1e-5)


def test_scales_in_any_order_are_labelled_right(config, tmp_path):
    runs = []
    for name, scales in (("sorted", (2, 16)), ("turned", (16, 2, 16))):
        train(tmp_path / name, replace(config, scales=scales, epochs=1, balance="equal"))
        runs.append(history(tmp_path / name)[0])
    assert runs[0]["validation"] == runs[1]["validation"]
    assert runs[0]["validation"]["loss"]["16"] > runs[0]["validation"]["loss"]["2"]


def test_balance_moves_every_so_many_optimiser_steps(config, monkeypatch):
    """Counted over the whole run, so that a resumed one goes on in the same rhythm."""
    moved = []
    monkeypatch.setattr(GradNorm, "update", lambda *_: moved.append(trainer.epoch))
    trainer = make_trainer(replace(config, balance_every=3))
    assert trainer.schedule.steps_per_epoch == 4
    for trainer.epoch in (1, 2):
        trainer.train_epoch()
    assert moved == [1, 1, 2]  # steps 0, 3 and 6 of eight


def test_negative_binomial_and_uncertainty_resume_bit_for_bit(config, tmp_path):
    """What the objective and the balance learn is saved, and found again."""
    config = replace(config, loss="nb", balance="uncertainty", epochs=2)
    train(tmp_path / "whole", config)
    with pytest.raises(Killed):
        train(tmp_path / "run", config, progress=DiesAfterEpoch(1))
    train(tmp_path / "run", config, resume=True)
    lines = history(tmp_path / "run")
    assert lines == history(tmp_path / "whole")
    assert same_checkpoints(tmp_path / "run", tmp_path / "whole")
    assert lines[1]["validation"]["score"] < 1
    assert lines[0]["weights"] != lines[1]["weights"]
    begun = make_trainer(config).learner.objective.log_size
    learned = load_run(tmp_path / "run", "cpu").objective.log_size
    assert learned.shape == (4, 3)
    assert (learned != begun).all()


@pytest.mark.slow
def test_mse_trains_too(config, tmp_path):
    train(tmp_path / "run", replace(config, loss="mse", balance="equal"))
    lines = history(tmp_path / "run")
    assert lines[-1]["validation"]["score"] < 1
    assert lines[-1]["weights"] == {"2": 1, "4": 1, "8": 1, "16": 1}


def test_early_stopping(config, tmp_path, monkeypatch):
    """Validation that never gets better ends the run after ``patience`` further epochs."""
    scores = iter([1.0, 0.5, 0.7, 0.6, 0.9, 0.1])
    monkeypatch.setattr(
        training.Trainer,
        "validate",
        lambda self: (torch.full((4,), next(scores)), torch.zeros(4)),
    )
    train(tmp_path / "run", replace(config, epochs=9, patience=3))
    lines = history(tmp_path / "run")
    assert [x["validation"]["score"] for x in lines] == pytest.approx([0.5, 0.7, 0.6, 0.9])
    assert [x["best"] for x in lines] == [True, False, False, False]
    best = json.loads((tmp_path / "run" / "best_metrics.json").read_text("utf-8"))
    assert best["epoch"] == 1
    assert load_run(tmp_path / "run", "cpu").state["epoch"] == 1


def test_diverging_run_names_the_batch_and_keeps_the_checkpoint(config, tmp_path):
    path = tmp_path / "run"
    absurd = replace(config, lr=1e30, warmup_epochs=0)
    with pytest.raises(ConfigError, match=r"not finite in epoch 1 at the batch of patch \d of sto"):
        train(path, absurd)
    best = load_run(path, "cpu")
    assert best.state["epoch"] == 0
    assert np.isfinite(best.predict(open_store(config.stores[1])[0])).all()


def test_validation_that_is_not_finite_ends_the_run(config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        training.Trainer, "validate", lambda self: (torch.full((4,), torch.nan), torch.zeros(4))
    )
    with pytest.raises(ConfigError, match="validation loss is not finite after epoch 1"):
        train(tmp_path / "run", config)


def test_refusals(run, config, tmp_path):
    with pytest.raises(ConfigError, match="is already there; give another --run, or --resume"):
        train(run, config)
    with pytest.raises(ConfigError, match="was begun with other options"):
        train(run, replace(config, lr=1e-3), resume=True)
    with pytest.raises(ConfigError, match="nothing to resume there"):
        train(tmp_path / "new", config, resume=True)
    for changed in (
        replace(config, test_patient="P9"),
        replace(config, panel="top:5"),
        replace(config, stores=config.stores * 2),
        replace(config, stores=config.stores[:1], test_patient="P1"),
    ):
        with pytest.raises(ConfigError):
            train(tmp_path / "new", changed)
    assert not (tmp_path / "new").exists()

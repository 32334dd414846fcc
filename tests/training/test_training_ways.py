"""Options that change how a run is trained, but its result only as they say."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dying import DiesAfterEpoch, Killed
from tiny_store import write_store
from tiny_training import few_steps, history, tiny_config, two_patients

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.models.decoders.linear import LinearDecoder
from virchow_st.predict.load import load_run
from virchow_st.run.checkpoint import load_checkpoint
from virchow_st.run.split import read_split
from virchow_st.settings import from_toml
from virchow_st.training import feed, schedule
from virchow_st.training.ema import RunningMean
from virchow_st.training.learner import Learner
from virchow_st.training.loss_watch import LossWatch
from virchow_st.training.schedule import Schedule
from virchow_st.training.train import train
from virchow_st.training.trainer import Trainer, _time_left

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="module")
def quick():
    with few_steps(2):
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_config(two_patients(tmp_path_factory.mktemp("stores")))


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    train(path, config)
    return path


class Listener:
    """Keeps what it is told."""

    def __init__(self):
        self.notes, self.steps = [], []

    def note(self, text):
        self.notes.append(text)

    def warn(self, text):
        raise AssertionError(text)

    def step(self, done, total, unit, detail=""):
        self.steps.append((done, total, unit, detail))


def tensors(run, which="last"):
    return (run / "checkpoints" / which / "tensors.safetensors").read_bytes()


def test_patches_read_all_along_or_held_give_the_same_run(run, config, tmp_path, monkeypatch):
    monkeypatch.setattr(feed, "_SHARE_TO_HOLD", 0.0)
    said = Listener()
    train(tmp_path / "run", config, progress=said)
    assert any("are read during training" in note for note in said.notes)
    assert history(tmp_path / "run") == history(run)
    assert tensors(tmp_path / "run") == tensors(run)


def test_a_run_repeats_itself_from_its_own_configuration(run, tmp_path, vst):
    answer = vst("train", "--run", tmp_path / "again", "--config", run / "config.toml")
    assert answer.code == 0, answer.err
    assert history(tmp_path / "again") == history(run)
    assert tensors(tmp_path / "again") == tensors(run)


def test_what_is_told_while_it_trains(config, tmp_path):
    said = Listener()
    train(tmp_path / "run", config, progress=said)
    steps = [step for step in said.steps if step[2] == "steps"]
    total = steps[0][1]
    assert [done for done, *_ in steps] == list(range(1, total + 1))
    assert {n for _, n, *_ in steps} == {total}
    for done, _, _, detail in steps:
        assert re.match(r"epoch [12], loss( \d+\.\d{3}){4}, [\d.e+]+ patches/s", detail)
        assert ("PCC" in detail) == (done > total // 2)  # known since the first epoch
    epochs = [note for note in said.notes if note.startswith("epoch ")]
    for line, note in zip(history(tmp_path / "run"), epochs, strict=True):
        for values in (line["train"]["loss"], line["weights"], line["validation"]["pcc"]):
            assert " ".join(f"{v:.3f}" for v in values.values()) in note
        assert ("(best)" in note) == line["best"]
        assert re.search(r", [\d.e+]+ patches/s(, \d+ s left)?$", note)
    assert "left" in epochs[0]
    assert "left" not in epochs[-1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, ""), (3.4, ", 3 s left"), (119, ", 119 s left"), (500, ", 8 min left"),
     (9000, ", 2.5 h left")],
)  # fmt: skip
def test_time_left(seconds, text):
    assert _time_left(seconds) == text


# --- the mean of the weights --------------------------------------------------------------------


def test_running_mean_is_what_it_says():
    decoder = LinearDecoder(16, torch.zeros(3), torch.ones(3), torch.zeros(2))
    mean = RunningMean(decoder, 0.5)
    expected = decoder.head.weight.detach().clone()
    for step in range(12):
        with torch.no_grad():
            decoder.head.weight.add_(1.0)
        mean.update(decoder, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * decoder.head.weight.detach()
        torch.testing.assert_close(mean.decoder.head.weight, expected)
    assert not mean.decoder.head.weight.requires_grad
    assert not torch.equal(mean.decoder.head.weight, decoder.head.weight)


def test_the_mean_is_validated_kept_and_resumed(run, config, tmp_path):
    config = replace(config, ema=0.9)
    train(tmp_path / "whole", config)
    with pytest.raises(Killed):
        train(tmp_path / "run", config, progress=DiesAfterEpoch(1))
    train(tmp_path / "run", config, resume=True)
    assert history(tmp_path / "run") == history(tmp_path / "whole")
    assert tensors(tmp_path / "run") == tensors(tmp_path / "whole")
    with_mean, without = history(tmp_path / "whole"), history(run)
    assert [x["train"] for x in with_mean] == [x["train"] for x in without]  # training is the same
    assert [x["validation"] for x in with_mean] != [x["validation"] for x in without]
    assert with_mean[-1]["best"]
    kept = load_run(tmp_path / "whole", "cpu").decoder
    last = {
        name: LinearDecoder(16, *torch.zeros(2, 8), torch.zeros(3)) for name in ("decoder", "mean")
    }
    load_checkpoint(tmp_path / "whole" / "checkpoints" / "last", last)
    assert torch.equal(kept.head.weight, last["mean"].head.weight)
    assert not torch.equal(kept.head.weight, last["decoder"].head.weight)


# --- when it goes wrong -------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_late_in_a_step(config, tmp_path, monkeypatch):
    """In the second of two accumulated batches, with a mean: named, and nothing of it is kept."""
    config = replace(config, accumulate=2, batch_size=1, ema=0.9, epochs=3)
    real, seen = Learner.losses, []

    def losses(self, batch, whole):
        seen.append(whole)
        factor = math.nan if len(seen) == 10 else 1.0
        return real(self, batch, whole) * factor

    monkeypatch.setattr(Learner, "losses", losses)
    with pytest.raises(ConfigError) as caught:
        train(tmp_path / "run", config)
    (bad,) = seen[-1].members
    epoch = len(history(tmp_path / "run")) + 1
    assert str(caught.value) == (
        f"the loss is not finite in epoch {epoch} at the batch of patch {bad.patch} of store 0; "
        f"the last checkpoint is kept, lower --lr"
    )
    state = json.loads((tmp_path / "run/checkpoints/last/state.json").read_text("utf-8"))
    assert state["epoch"] == epoch - 1 > 0
    monkeypatch.undo()
    whole = tmp_path / "whole"
    with pytest.raises(Killed):
        train(whole, config, progress=DiesAfterEpoch(epoch - 1))
    assert tensors(whole) == tensors(tmp_path / "run")


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_is_kept(
    config, tmp_path, monkeypatch
):
    """The loss of that batch is finite; what follows is not, at the latest in validation."""
    config = replace(config, epochs=3)
    real, calls = Learner.losses, []

    def losses(self, batch, whole):
        calls.append(whole)
        found = real(self, batch, whole)
        if len(calls) == 4:  # the last of the second epoch
            self.decoder.head.weight.register_hook(lambda g: g * math.inf)
        return found

    monkeypatch.setattr(Learner, "losses", losses)
    with pytest.raises(ConfigError, match="not finite"):
        train(tmp_path / "run", config)
    state = json.loads((tmp_path / "run/checkpoints/last/state.json").read_text("utf-8"))
    assert state["epoch"] == 1
    best = load_run(tmp_path / "run", "cpu")
    assert all(torch.isfinite(p).all() for p in best.decoder.parameters())


def test_watch_names_the_batch_and_adds_up():
    def refusal(plan):
        return ConfigError(plan)

    watch = LossWatch(2, torch.device("cpu"), refusal)
    watch.look("ab", torch.tensor([1.0, 2.0]))
    watch.look("c", torch.tensor([4.0, 5.0]))
    watch.finish()
    assert watch.sums_S.tolist() == [6.0, 9.0]
    assert watch.means == [2.0, 3.0]
    with pytest.raises(ConfigError, match="xyz"):
        watch.look("xyz", torch.tensor([1.0, torch.inf]))


def test_a_run_is_begun_whole_or_not_at_all(run, config, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", killed)
        with pytest.raises(Killed):
            train(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
    train(tmp_path / "run", config)  # what was left aside is no hindrance
    assert history(tmp_path / "run") == history(run)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_the_split_is_hashed_into_the_run(run, tmp_path):
    digest = read_split(run / "split.json")["xxh64"]
    assert (run / "config.toml").read_text("utf-8").endswith(f"# Hash of split.json: {digest}\n")
    for which in ("last", "best"):
        state = json.loads((run / f"checkpoints/{which}/state.json").read_text("utf-8"))
        assert state["split_xxh64"] == digest
    assert json.loads((run / "best_metrics.json").read_text("utf-8"))["split_xxh64"] == digest


def test_a_split_of_another_run_is_refused(config, tmp_path):
    """It would be whole and match its own hash, and let trained patches into the test."""
    train(tmp_path / "a", replace(config, epochs=1))
    train(tmp_path / "b", replace(config, epochs=1, test_patient="P1"))
    (tmp_path / "b" / "split.json").replace(tmp_path / "a" / "split.json")
    with pytest.raises(ConfigError, match=r"a/split\.json: is not the file that the run was"):
        load_run(tmp_path / "a", "cpu")


def test_device_and_compiling_may_change_on_the_way(config, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path / "run", config, progress=DiesAfterEpoch(1))
    train(tmp_path / "run", replace(config, device="auto", compile="never"), resume=True)
    assert len(history(tmp_path / "run")) == 2
    assert from_toml(TrainConfig, tmp_path / "run" / "config.toml") == config


OTHER_ENCODER = {"encoder": {"name": "other", "weights": "1" * 16, "licence": ""}}
TWINS = [f"ENSG{g:05d}" for g in range(4)], ["A", "TWIN", "TWIN", "B"]
SAME_NAME = {"genes": {"id": TWINS[0], "symbol": TWINS[1], "total": [9, 9, 9, 9]}}


@pytest.mark.parametrize(
    ("manifest", "panel", "expected"),
    [
        (OTHER_ENCODER, None, "P2.vst: expected tokens of ('tiny', '0000000000000000', 16, 8)"),
        ({"grid": 32}, None, "extract with one encoder"),
        ({"dim": 9}, None, "extract with one encoder"),
        ({}, "", "expected a gene id or symbol per line; the file names none"),
        ({}, "GENE1\nNOTHING\n", "1 of 2 genes are not in any training store: 'NOTHING'; remove"),
        (SAME_NAME, "TWIN\n", "symbol 'TWIN' belongs to ENSG00001, ENSG00002; give the gene id"),
    ],
)
def test_what_cannot_be_trained_on_is_said_in_a_line(vst, tmp_path, manifest, panel, expected):
    stores = []
    for i, patient in enumerate(("P2", "P5")):
        path = tmp_path / f"{patient}.vst"
        own = manifest if patient == "P2" or "genes" in manifest else {}
        write_store(path, patient, 3, n_genes=4, seed=i, **own)
        stores.append(path)
    stores.reverse()
    (tmp_path / "panel.txt").write_text(panel or "", "utf-8")
    arguments = ["train", *stores, "--run", tmp_path / "run", "--test-patient", "P5"]
    if panel is not None:
        arguments += ["--panel", tmp_path / "panel.txt"]
    answer = vst(*arguments, "--device", "cpu")
    assert answer.code == 2
    assert answer.out == ""
    (line,) = answer.err.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert not (tmp_path / "run").exists()


# --- what else it writes ------------------------------------------------------------------------


def test_tensorboard_gets_the_history(run, config, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra [tracking] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Killed):
        train(tmp_path / "run", config, progress=DiesAfterEpoch(1))
    train(tmp_path / "run", config, resume=True)
    for path in (run, tmp_path / "run"):
        events = EventAccumulator(str(path / "tensorboard")).Reload()
        for scale in ("2", "16"):
            lines = history(path)
            found = [(e.step, e.value) for e in events.Scalars(f"validation/pcc/{scale}um")]
            assert [step for step, _ in found] == [1, 2]
            expected = [line["validation"]["pcc"][scale] for line in lines]
            np.testing.assert_allclose([value for _, value in found], expected, rtol=1e-6)
            assert len(events.Scalars(f"weights/{scale}um")) == 2


def test_no_tensorboard_no_events(config, tmp_path, monkeypatch):
    monkeypatch.setattr("virchow_st.run.history.find_spec", lambda name: None)
    train(tmp_path / "run", replace(config, epochs=1))
    assert not (tmp_path / "run" / "tensorboard").exists()


# --- the schedule -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_patches", "batch_size", "accumulate", "passes", "steps"),
    [(1000, 8, 4, 1, 32), (33, 4, 1, 1, 9), (5, 2, 2, 7, 9), (5, 8, 4, 52, 9), (256, 8, 4, 1, 8)],
)
def test_an_epoch_is_a_pass_or_as_many_as_make_eight_steps(
    n_patches, batch_size, accumulate, passes, steps, monkeypatch
):
    monkeypatch.setattr(schedule, "_LEAST_STEPS_PER_EPOCH", 8)
    config = TrainConfig(batch_size=batch_size, accumulate=accumulate, epochs=30, warmup_epochs=2)
    found = Schedule.of(config, n_patches)
    assert (found.passes, found.steps_per_epoch) == (passes, steps)
    assert (found.warmup, found.total) == (2 * steps, 30 * steps)
    shares = [found.share(step) for step in range(found.total)]
    assert shares[found.warmup - 1] == max(shares) == 1.0
    assert shares[: found.warmup] == sorted(shares[: found.warmup])
    assert shares[found.warmup :] == sorted(shares[found.warmup :], reverse=True)
    assert 0 < shares[-1] < 0.01


def test_the_document_names_every_setting():
    text = (ROOT / "docs" / "training.md").read_text("utf-8")
    for f in fields(TrainConfig):
        assert f.name == "stores" or f"`--{f.name.replace('_', '-')}`" in text, f.name

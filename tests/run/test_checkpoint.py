"""Checkpoints: saved in the background, complete or absent, and refused if damaged."""

import errno
import json
import os
import shutil

import pytest
import torch
from torch import nn

from virchow_st.errors import ConfigError
from virchow_st.run import checkpoint
from virchow_st.run.checkpoint import CheckpointWriter, load_checkpoint, read_state, save_checkpoint
from virchow_st.run.lock import RunLock
from virchow_st.runtime.lock import lock_beside


def state(epoch=1, **more):
    """What a run of one scale keeps of a training."""
    encoder = {"name": "stain", "weights": "0" * 16, "licence": ""}
    return {
        "epoch": epoch, "best_epoch": min(epoch, 1), "best_score": 0.1 + 0.2, "first_losses": [1.5],
        "grid": 16, "dim": 8, "encoder": encoder,
    } | more  # fmt: skip


def make(seed=0):
    torch.manual_seed(seed)
    modules = {
        "decoder": nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)),
        "norm": nn.BatchNorm1d(3),
    }
    parameters = [p for m in modules.values() for p in m.parameters()]
    return modules, torch.optim.AdamW(parameters, lr=0.1)


def step(modules, optimizer):
    loss = modules["decoder"](modules["norm"](torch.randn(8, 3))).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def values(modules):
    return {f"{n}.{k}": v.clone() for n, m in modules.items() for k, v in m.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_round_trip_with_the_optimizer_goes_on_as_if_nothing_had_been(tmp_path):
    modules, optimizer = make(0)
    for _ in range(3):
        step(modules, optimizer)
    save_checkpoint(tmp_path / "last", modules, state(3), optimizer)
    twins, twin_optimizer = make(1)
    assert not same(values(modules), values(twins))
    loaded = load_checkpoint(tmp_path / "last", twins, twin_optimizer)
    assert loaded == {"format": checkpoint.FORMAT, **state(3)} | {
        name: loaded[name] for name in ("tensors_xxh64", "xxh64")
    }
    assert same(values(modules), values(twins))
    for these, their_optimizer in ((modules, optimizer), (twins, twin_optimizer)):
        torch.manual_seed(5)
        for _ in range(3):
            step(these, their_optimizer)
    assert same(values(modules), values(twins))


def test_part_of_a_checkpoint_can_be_loaded(tmp_path):
    modules, _ = make(0)
    save_checkpoint(tmp_path / "best", modules, state())
    twins, _ = make(1)
    load_checkpoint(tmp_path / "best", {"decoder": twins["decoder"]})
    assert torch.equal(twins["decoder"][0].weight, modules["decoder"][0].weight)


def test_nothing_is_pickled(tmp_path):
    modules, optimizer = make()
    step(modules, optimizer)
    save_checkpoint(tmp_path / "last", modules, state(1), optimizer)
    assert {p.name for p in (tmp_path / "last").iterdir()} == {"tensors.safetensors", "state.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["last"]
    assert json.loads((tmp_path / "last" / "state.json").read_text("utf-8"))["epoch"] == 1


class Killed(BaseException):
    pass


def save_and_die(monkeypatch, folder, epoch, dies_at):
    """Save, dying at the n-th of the steps that touch folders under their final names."""
    calls = []

    def dying(real):
        def call(*args, **kwargs):
            calls.append(args)
            if len(calls) == dies_at:
                raise Killed
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", dying(checkpoint.save_file))
        patch.setattr(os, "replace", dying(os.replace))
        modules, optimizer = make(epoch)
        try:
            save_checkpoint(folder, modules, state(epoch), optimizer)
        except Killed:
            return False
    return True


@pytest.mark.parametrize("first_death", [1, 2, 3])
@pytest.mark.parametrize("second_death", [1, 2, 3, 4])
def test_a_whole_checkpoint_outlives_any_death(tmp_path, monkeypatch, first_death, second_death):
    folder = tmp_path / "last"
    assert save_and_die(monkeypatch, folder, 1, None)
    assert not save_and_die(monkeypatch, folder, 2, first_death)
    for newest in (2, 3):
        modules, _ = make(99)
        epoch = load_checkpoint(folder, modules)["epoch"]
        assert epoch in (1, newest)
        assert same(values(modules), values(make(epoch)[0]))
        save_and_die(monkeypatch, folder, 3, second_death)
    assert save_and_die(monkeypatch, folder, 4, None)
    assert read_state(folder)["epoch"] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


def test_death_between_the_renames_leaves_the_old_one_in_use(tmp_path, monkeypatch):
    folder = tmp_path / "last"
    save_and_die(monkeypatch, folder, 1, None)
    assert not save_and_die(monkeypatch, folder, 2, 3)  # save_file, old away, | new in place
    assert not folder.exists()
    assert read_state(folder)["epoch"] == 1


def test_a_run_has_nothing_left_of_a_writer_killed_after_its_last_checkpoint(tmp_path):
    """Training that is resumed after its last epoch saves no more checkpoints that would tidy."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("")
    lock_beside(run).write_text("process 1 on a machine\n")  # of the writer that began it
    folders = [run / "checkpoints" / name for name in ("last", "best")]
    for folder in folders:
        save_checkpoint(folder, make()[0], state(2))
        shutil.copytree(folder, folder.with_name(f".{folder.name}.old"))
    folders[1].rename(tmp_path / "gone")  # it died between the renames of this one
    with RunLock() as lock:
        lock.take(run)
        assert sorted((run / "checkpoints").iterdir()) == sorted(folders)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gone", "run"]
    assert all(read_state(folder)["epoch"] == 2 for folder in folders)


def test_foreign_and_damaged_checkpoints_are_refused(tmp_path):
    modules, optimizer = make()
    folder = tmp_path / "last"
    with pytest.raises(ConfigError, match="last: no checkpoint there; run `vst train` first"):
        load_checkpoint(folder, modules)
    save_checkpoint(folder, modules, state(1), optimizer)

    other = {"decoder": nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))}
    with pytest.raises(ConfigError, match=r"last: does not fit the decoder \(.*size mismatch"):
        load_checkpoint(folder, other)
    with pytest.raises(ConfigError, match="does not fit the balance"):
        load_checkpoint(folder, {"balance": nn.Linear(1, 1)})

    tensors = (folder / "tensors.safetensors").read_bytes()
    for damaged in (tensors[:-1], tensors[:-9] + bytes([tensors[-9] ^ 0x40]) + tensors[-8:]):
        (folder / "tensors.safetensors").write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"tensors\.safetensors: is damaged, its hash is"):
            load_checkpoint(folder, modules)
    (folder / "tensors.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"tensors\.safetensors: cannot be read"):
        load_checkpoint(folder, modules)

    for text, reason in [
        (
            '{"format": "virchow_st.checkpoint/9"}',
            "format: expected 'virchow_st.checkpoint/1'; got 'virchow_st.checkpoint/9'",
        ),
        ("{}", "format is missing"),
        ("[1]", "expected an object; got a list"),
        ("{", "cannot be read as JSON"),
    ]:
        (folder / "state.json").write_text(text, "utf-8")
        with pytest.raises(ConfigError, match=reason):
            read_state(folder)


def test_written_aside_it_is_as_it_was_when_saved(tmp_path):
    """What training changes while the thread writes is not what is saved."""
    modules, optimizer = make(0)
    step(modules, optimizer)
    save_checkpoint(tmp_path / "plain", modules, state(1), optimizer)
    writer = CheckpointWriter()
    for epoch in (1, 2, 3):
        writer.save(tmp_path / f"aside{epoch}", modules, state(epoch), optimizer)
        with torch.no_grad():
            for parameter in modules["decoder"].parameters():
                parameter.zero_()
        step(modules, optimizer)
    writer.close()
    tensors = "tensors.safetensors"
    assert (tmp_path / "aside1" / tensors).read_bytes() == (
        tmp_path / "plain" / tensors
    ).read_bytes()
    assert [read_state(tmp_path / f"aside{epoch}")["epoch"] for epoch in (1, 2, 3)] == [1, 2, 3]


def test_a_disk_that_is_full_is_told(tmp_path, monkeypatch):
    def full(tensors, path):
        raise checkpoint.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    modules, _ = make(0)
    writer = CheckpointWriter()
    writer.save(tmp_path / "best", modules, state())
    writer.save(tmp_path / "last", modules, state())
    for which, call in (("best", lambda: writer.save(tmp_path / "best", modules, state())),
                        ("last", writer.close)):  # fmt: skip
        with pytest.raises(OSError, match="No space left on device") as told:
            call()
        assert told.value.errno == errno.ENOSPC
        assert told.value.filename == str(tmp_path / which)
    assert not list(tmp_path.iterdir())

"""Several processes train like one: same order, same sums, and only one reports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from dying import DiesAfterEpoch, Killed
from joined_trainer import DIED, STEPS
from safetensors.torch import load_file
from tiny_training import few_steps, history, tiny_config, two_patients

from virchow_st.errors import ConfigError
from virchow_st.predict.load import load_run
from virchow_st.runtime.distributed import ALONE, Processes, process_group
from virchow_st.settings import to_toml
from virchow_st.training.train import train

HERE = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Five patches to train on in batches of four: the last batch has one patch for two."""
    stores = two_patients(tmp_path_factory.mktemp("stores"), (6, 2), columns=3)
    return tiny_config(
        stores, decoder="guided", loss="nb", epochs=1, batch_size=4, accumulate=2,
        warmup_epochs=0, ema=0.9,
    )  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def as_the_script():
    with few_steps(STEPS):
        yield


class Answer(NamedTuple):
    """What a process left."""

    code: int
    err: str


def together(*arguments: object, n: int = 2) -> list[Answer]:
    """What torchrun would start, without its own seconds, to the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(HERE / "joined_trainer.py"), *map(str, arguments)]
    processes = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {
                "RANK": str(i), "WORLD_SIZE": str(n), "LOCAL_RANK": str(i),
                "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            },
        )
        for i in range(n)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Answer(p.returncode, err) for p, err in zip(processes, said, strict=True)]


def written(config, path):
    path.write_text(to_toml(config), "utf-8")
    return path


def figures(line):
    return [
        value
        for name in (line["train"]["loss"], line["weights"], *line["validation"].values())
        for value in (name.values() if isinstance(name, dict) else [name])
    ]


def assert_close(run, other):
    for mine, theirs in zip(history(run), history(other), strict=True):
        assert figures(mine) == pytest.approx(figures(theirs), rel=1e-4)
        assert mine["best"] == theirs["best"]
    a, b = (load_file(r / "checkpoints" / "last" / "tensors.safetensors") for r in (run, other))
    assert a.keys() == b.keys()
    for name in a:
        # Adam's steps are as large for a gradient that is rounding as for any other.
        atol = 2e-4 if name.startswith(("decoder", "mean")) else 1e-5
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=atol, msg=name)


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory):
    """Runs of one process, of two, and one that one began and two end."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "alone", config)
    begun = simpler(config)
    train(folder / "alone2", begun)
    train(folder / "alone_all", of_all_genes(config))
    with pytest.raises(Killed):
        train(folder / "two2", begun, progress=DiesAfterEpoch(1))
    return folder


def simpler(config):
    return replace(config, decoder="linear", loss="mse", epochs=2, ema=0.0)


def of_all_genes(config):
    return replace(simpler(config), panel="all:top:2", factors=2, loss="poisson", epochs=1)


@pytest.fixture(scope="module")
def answers(config, folder):
    """One start for all of it: loading torch takes longer than the runs."""
    a = written(config, folder / "a.toml")
    b = written(simpler(config), folder / "b.toml")
    of_all = written(of_all_genes(config), folder / "all.toml")
    odd = written(replace(config, batch_size=3), folder / "odd.toml")
    c = written(replace(simpler(config), epochs=3), folder / "c.toml")
    return together(
        *("nothing", odd, folder / "odd"),
        *("no-store", a, folder / "lost"),
        *("nothing", a, folder / "two"),
        *("nothing", b, folder / "two2"),
        *("nothing", of_all, folder / "two_all"),
        *("dies", c, folder / "dies"),
    )


def test_two_processes_train_as_one(answers, folder):
    """Images, stain drawn at random, learned dispersions, GradNorm, a mean of the weights."""
    assert_close(folder / "two", folder / "alone")


def test_two_processes_learn_factors_and_loadings_as_one(answers, folder):
    assert_close(folder / "two_all", folder / "alone_all")
    a, b = (load_run(folder / name, "cpu").loadings for name in ("two_all", "alone_all"))
    np.testing.assert_allclose(a, b, rtol=1e-3)


def test_two_processes_resume_what_one_began(answers, folder):
    assert len(history(folder / "two2")) == 2
    assert_close(folder / "two2", folder / "alone2")


def test_errors_end_all_and_are_told_once(answers, config, folder):
    refused, lost, died = answers[0].err.splitlines()
    assert refused == (
        "error: batch_size: expected a multiple of the 2 processes, which share a batch; got 3"
    )
    assert lost == f"error: process 1 of 2: {config.stores[0]}: no such store"
    assert died.startswith("error: process 0 of 2: another process of the run ended; see its")
    assert answers[1].err == ""
    assert [answer.code for answer in answers] == [1, DIED]
    assert not (folder / "odd").exists()
    assert not (folder / "lost").exists()


def test_what_was_finished_before_a_process_died_is_kept(answers, folder):
    assert len(history(folder / "dies")) == 1
    assert {p.name for p in (folder / "dies" / "checkpoints").iterdir()} == {"last", "best"}


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_parts_are_the_whole(size, n):
    parts = [list(range(n))[Processes(rank, size).part(n)] for rank in range(size)]
    assert [i for part in parts for i in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group() as processes:
        assert processes is ALONE
    assert ALONE.is_first
    values = torch.ones(3)
    assert ALONE.sum(values) is values
    error = ConfigError("x")
    assert ALONE.error_for_rank(error) is error
    assert isinstance(Processes(1, 2).error_for_rank(error), SystemExit)
    assert ALONE.from_first(lambda: 7) == ALONE.together(lambda: 7) == 7


def test_half_of_what_torchrun_sets_is_refused(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ConfigError, match="WORLD_SIZE=2: .*RANK, LOCAL_RANK.* are missing"),
        process_group(),
    ):
        pass


@pytest.mark.slow
def test_torchrun_and_the_command_line(config, tmp_path):
    """As docs/training.md has it: one voice, one run; and a wrong option is told once."""

    def torchrun(*options):
        return subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--",
             "virchow_st_cli.main", "train", *config.stores, "--run", tmp_path / "run",
             "--config", written(config, tmp_path / "c.toml"), *options],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    wrong = torchrun("--loss", "mae")
    assert wrong.stderr.count("Invalid value for '--loss'") == 1
    assert torchrun("--leave-one-out").stderr.count("expected it without a test patient") == 1
    done = torchrun("--epochs", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'run'}: trained; next: vst evaluate {tmp_path / 'run'}\n"
    assert done.stderr.count("epoch 2/2: ") == 1
    assert len(history(tmp_path / "run")) == 2

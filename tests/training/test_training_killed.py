"""Training killed at any moment and resumed is training that was not killed, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_training import history, tiny_config, two_patients

from virchow_st.settings import to_toml

HERE = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    stores = two_patients(tmp_path_factory.mktemp("stores"))
    return tiny_config(stores, loss="nb", epochs=3, accumulate=2, ema=0.9)


@pytest.mark.parametrize(
    ("seed", "n_runs"), [(0, 1), *(pytest.param(s, 12, marks=pytest.mark.slow) for s in (1, 2))]
)
def test_killed_and_resumed(config, tmp_path, seed, n_runs):
    (tmp_path / "config.toml").write_text(to_toml(config), "utf-8")
    command = [sys.executable, HERE / "killed_trainer.py", tmp_path / "config.toml", tmp_path]
    done = subprocess.run(
        [*map(str, command), str(seed), str(n_runs)], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == n_runs
    assert any(line["killed_after_epochs"] for line in lines)  # else nothing was put to the test
    whole = tmp_path / "whole"
    for line in lines:
        run = Path(line["run"])
        assert history(run) == history(whole)
        for which in ("last", "best"):
            for name in ("tensors.safetensors", "state.json"):
                path = Path("checkpoints") / which / name
                assert (run / path).read_bytes() == (whole / path).read_bytes(), line
        assert (run / "best_metrics.json").read_bytes() == (
            whole / "best_metrics.json"
        ).read_bytes()
        assert {p.name for p in run.iterdir()} == {p.name for p in whole.iterdir()}
        assert {p.name for p in (run / "checkpoints").iterdir()} == {"last", "best"}

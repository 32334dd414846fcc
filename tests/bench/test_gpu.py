"""`make gpu`: its parts run on a CPU, and one that fails is named while the others go on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from virchow_st.bench.tables import Table

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_every_part_for_a_gpu_runs(tmp_path) -> None:
    """At sizes for a CPU: what no machine at hand can run as it is meant must at least run."""
    done = run("--tiny", "--json", tmp_path / "gpu.json")
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert {part["outcome"] for part in content["parts"].values()} == {"done"}
    for table in content["tables"]:
        numbers = [cell for row in table["rows"] for cell in row if isinstance(cell, int | float)]
        assert numbers, table["title"]
        assert min(numbers) > 0, table["title"]
    assert len(content["tables"]) >= len(content["parts"])


def test_a_part_that_fails_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    table = Table("T", ["a", "b"], [["r", 2.0]], ["note"]).content()
    outcomes = {"loss": ("failed: no", []), "factors": ("done", [table]), "tests": ("done", [])}
    monkeypatch.setattr(gpu, "_in_process", lambda name, tiny, limit: outcomes[name])
    monkeypatch.setattr(gpu, "pick_device", lambda name: None)
    path = tmp_path / "gpu.json"
    arguments = ["gpu.py", "--parts", "loss,factors,tests", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as caught:
        gpu.main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "failed: loss\n"
    content = json.loads(path.read_text("utf-8"))
    assert content["tables"] == [table]
    assert {name: part["outcome"] for name, part in content["parts"].items()} == {
        name: outcome for name, (outcome, _) in outcomes.items()
    }
    monkeypatch.setattr(sys, "argv", [*arguments, "--minutes", "0"])
    with pytest.raises(SystemExit) as caught:
        gpu.main()
    assert caught.value.code == 1
    parts = json.loads(path.read_text("utf-8"))["parts"].values()
    assert {part["outcome"] for part in parts} == {"not run: no time left"}


def test_a_part_runs_in_a_process_and_its_error_is_its_outcome(monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    monkeypatch.setitem(gpu.PARTS, "absent", gpu.PARTS["loss"])  # the new process knows no such
    outcome, tables = gpu._in_process("absent", True, 60)
    assert (outcome, tables) == ("failed: KeyError: 'absent'", [])
    assert "KeyError" in capsys.readouterr().err
    outcome, tables = gpu._in_process("loss", True, 0.01)
    assert (outcome, tables) == ("failed: not done after 0 s", [])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_nothing_runs() -> None:
    done = run()
    assert done.returncode == 2
    assert done.stderr.startswith("gpu: device: cuda was asked for")
    assert done.stdout == ""


def test_the_tests_that_a_gpu_runs_are_there(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_parts

    for name in (*gpu_parts.GPU_TESTS, *gpu_parts.TINY_TESTS):
        file, _, function = name.partition("::")
        text = (BENCHMARKS.parent / "tests" / "models" / file).read_text("utf-8")
        assert f"def {function.partition('[')[0]}(" in text

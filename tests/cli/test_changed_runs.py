"""Every command refuses a run whose files were changed after its training."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from changed_weights import WEIGHTS, change_weights
from cli_place import Vst
from torch import Tensor

from virchow_st.run.integrity import hash_of


@pytest.fixture
def run(stain_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stain_run, tmp_path / "run"))


def commands(run: Path, image: Path) -> dict[str, list[object]]:
    """Every command that takes a run."""
    cpu = ["--device", "cpu"]
    return {
        "evaluate": ["evaluate", run, *cpu],
        "predict": ["predict", run, image, "--out", run.parent / "out.zarr", *cpu],
        "resume": ["train", "--run", run, "--resume", *cpu],
        "figures": ["figures", run],
        "report": ["report", run],
        "export": ["export", run, "--out", run.parent / "out.zarr"],
    }


def refused(vst: Vst, folder: Path, arguments: list[object]) -> str:
    """The line; nothing is changed by it."""
    before = listing(folder)
    answer = vst(*arguments)
    assert answer.code == 2, answer
    assert "Traceback" not in answer.err
    (line,) = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert listing(folder) == before
    return line


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def sort_panel(run: Path) -> str:
    path = run / "panel.tsv"
    first, *genes = path.read_text().splitlines(keepends=True)
    assert genes != sorted(genes)
    path.write_text("".join([first, *sorted(genes)]))
    return "panel.tsv"


def change_split(run: Path) -> str:
    path = run / "split.json"
    path.write_text(path.read_text().replace('"P5"', '"P1"', 1))
    return "split.json"


def change_setting(run: Path) -> str:
    path = run / "config.toml"
    path.write_text(path.read_text().replace("seed = 0", "seed = 1"))
    return "config.toml"


def change_state(run: Path) -> str:
    for path in run.glob("checkpoints/*/state.json"):
        state = json.loads(path.read_text())
        path.write_text(json.dumps(state | {"epoch": state["epoch"] + 1}))
    return "state.json"


def flip_bit(run: Path) -> str:
    for path in run.glob(f"checkpoints/*/{WEIGHTS}"):
        content = bytearray(path.read_bytes())
        content[-1000] ^= 1
        path.write_bytes(content)
    return WEIGHTS


LOADERS = ("evaluate", "predict", "resume")


@pytest.mark.parametrize("command", [*LOADERS, "figures", "report", "export"])
@pytest.mark.parametrize("change", [sort_panel, change_split, change_setting, change_state])
def test_changed_files(
    vst: Vst, run: Path, simulated: Path, command: str, change: Callable[[Path], str]
) -> None:
    name = change(run)
    line = refused(vst, run.parent, commands(run, simulated / "P5" / "tissue_image.tif")[command])
    assert name in line


@pytest.mark.parametrize("command", LOADERS)
def test_a_bit_of_the_weights(vst: Vst, run: Path, simulated: Path, command: str) -> None:
    """By the commands that load them; the others read results that were written before."""
    name = flip_bit(run)
    line = refused(vst, run.parent, commands(run, simulated / "P5" / "tissue_image.tif")[command])
    assert name in line


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"grid": 0}, "grid: expected 1 to 128; got 0"),
        ({"grid": 48}, "grid: expected a divisor of 128"),
        ({"grid": "16"}, "grid: expected a whole number"),
        ({"dim": 1 << 50}, "dim: expected 1 to"),
        ({"epoch": -1}, "epoch: expected at least 0"),
        ({"encoder": {}}, "encoder.name is missing"),
        ({"first_losses": []}, "first_losses: expected 1 to 4 parts"),
        ({"files": {"config.toml": ""}}, "files: expected the hashes of"),
    ],
)
def test_values_of_the_state_that_cannot_be(
    vst: Vst, run: Path, change: dict[str, Any], named: str
) -> None:
    """Though it matches its own hash: KeyError, ZeroDivisionError, or memory for all of dim."""
    path = run / "checkpoints" / "best" / "state.json"
    state = json.loads(path.read_text()) | change
    del state["xxh64"]
    path.write_text(json.dumps(state | {"xxh64": hash_of(state)}))
    for arguments in (["evaluate", run, "--device", "cpu"], ["report", run]):
        assert f"{path}: {named}" in refused(vst, run.parent, arguments)


@pytest.mark.parametrize("bias", [50.0, float("nan")])
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_rates_that_cannot_be(
    vst: Vst, run: Path, simulated: Path, command: str, bias: float
) -> None:
    """Weights whose hashes are right, of a run that diverged."""

    def change(tensors: dict[str, Tensor]) -> None:
        (name,) = [name for name in tensors if name.endswith("head.bias")]
        tensors[name][2] = bias

    change_weights(run, change)
    line = refused(vst, run.parent, commands(run, simulated / "P5" / "tissue_image.tif")[command])
    assert "at most 65504 UMIs per 2 µm bin" in line
    assert ("1 of 6 genes" if math.isnan(bias) else "bins, and where they are more than 1%") in line

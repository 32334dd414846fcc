"""A prediction that was killed or stopped goes on where it was, and ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tifffile
from dying import Killed

from virchow_st.config import PredictConfig
from virchow_st.predict.journal import NAME, Journal
from virchow_st.predict.runs import LoadedRuns, load_runs
from virchow_st.predict.slide import predict_slide
from virchow_st.runtime.progress import SILENT, Recording

CONFIG = PredictConfig(mpp=0.5, device="cpu", overlap_um=32)


def content(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def image(simulated: Path) -> Path:
    return simulated / "P5" / "tissue_image.tif"


@pytest.fixture(scope="module")
def loaded(stain_run: Path) -> LoadedRuns:
    return load_runs([stain_run], CONFIG, SILENT)


@pytest.fixture(scope="module")
def undisturbed(
    loaded: LoadedRuns, image: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "p.zarr"
    predict_slide([], image, out, CONFIG, SILENT, loaded)
    return content(out)


def killed_at(
    nth: int, monkeypatch: pytest.MonkeyPatch, predict: Callable[[], Any], after: bool = False
) -> bool:
    """Kill a prediction at the nth line of its journal, before or after it; whether it was."""
    real, n = Journal._append, [0]

    def append(self: Journal, line: Any) -> None:
        n[0] += 1
        if n[0] == nth and not after:
            raise Killed
        real(self, line)
        if n[0] == nth:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "_append", append)
        try:
            predict()
        except Killed:
            return True
    return False


def test_killed_at_every_part(
    loaded: LoadedRuns, image: Path, undisturbed: dict[str, bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "p.zarr"

    def predict() -> None:
        predict_slide([], image, out, CONFIG, SILENT, loaded)

    # In turn before a part is noted, so that it is made again, and after it.
    n_kills = 0
    while killed_at(1, monkeypatch, predict, after=n_kills % 2 == 1):
        n_kills += 1
        assert n_kills < 40
    assert n_kills >= 8
    assert content(out) == undisturbed
    assert {p.name for p in tmp_path.iterdir()} == {"p.zarr", "p_tissue.png"}


def begun(
    loaded: LoadedRuns, image: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Path:
    """The unfinished output of a prediction that was killed after half of its blocks."""
    config = PredictConfig(**{"mpp": 0.5, "device": "cpu", "overlap_um": 32} | options)
    assert killed_at(4, monkeypatch, lambda: predict_slide([], image, out, config, SILENT, loaded))
    return out.with_name(f".{out.name}.part")


def chunk(part: Path) -> Path:
    """A file of maps of a block that the journal has."""
    return first_file(part / "zarr/images/rates_2um/s0/c")


def first_file(folder: Path) -> Path:
    return next(p for p in sorted(folder.rglob("*")) if p.is_file())


@pytest.mark.slow
def test_leftovers_that_are_damaged_are_made_again(
    loaded: LoadedRuns, image: Path, undisturbed: dict[str, bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def older(part: Path) -> None:
        lines = (part / NAME).read_text().splitlines()
        lines[0] = json.dumps({"fingerprint": "0" * 16})
        (part / NAME).write_text("\n".join(lines) + "\n")

    anew, goes_on = "begun anew, since what an earlier command left ", "goes on after 1 blocks"
    for number, (damage, said) in enumerate(
        [
            (lambda part: chunk(part).unlink(), "goes on after 0 blocks; 1 are damaged"),
            (lambda part: cut(chunk(part)), "goes on after 0 blocks; 1 are damaged"),
            (lambda part: cut(first_file(part / "zarr/images/he/s0/c")), goes_on),
            (lambda part: cut(part / NAME), ""),
            (lambda part: (part / NAME).write_bytes(b"\xff\n"), f"{anew}cannot be read"),
            (lambda part: (part / NAME).unlink(), f"{anew}cannot be read"),
            (older, f"{anew}is of other inputs or options"),
            (lambda part: cut(part / "zarr/zarr.json"), f"{anew}is damaged"),
            (lambda part: (part / "zarr").rename(part / "result"), goes_on),
            (lambda part: (part / "zarr/images/x.partial").touch(), goes_on),
        ]
    ):
        out = tmp_path / f"{number}.zarr"
        damage(begun(loaded, image, out, monkeypatch))
        reports = Recording()
        predict_slide([], image, out, CONFIG, reports, loaded)
        assert any(said in note for note in reports.notes), (number, reports.notes)
        assert content(out) == undisturbed, number


def test_leftovers_of_other_options_are_not_used(
    loaded: LoadedRuns, image: Path, undisturbed: dict[str, bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "p.zarr"
    for other in ({"overlap_um": 64}, {"min_tissue": 0.3}, {"format": "ome-zarr"}):
        begun(loaded, image, out, monkeypatch, **other)
        assert killed_at(
            1, monkeypatch, lambda: predict_slide([], image, out, CONFIG, SILENT, loaded)
        )
    # Nor those of another picture under the same name.
    changed = tmp_path / "slide.tif"
    pixels = tifffile.imread(image)
    tifffile.imwrite(changed, 255 - (255 - pixels) // 2, tile=(256, 256), photometric="rgb")
    begun(loaded, changed, out, monkeypatch)
    predict_slide([], image, out, CONFIG, SILENT, loaded)
    assert content(out) == undisturbed


def test_an_error_leaves_nothing(loaded: LoadedRuns, image: Path, tmp_path: Path) -> None:
    class Fails(Recording):
        def step(self, done: int, total: int, unit: str, detail: str = "") -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        predict_slide([], image, tmp_path / "p.zarr", CONFIG, Fails(), loaded)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["p.h5ad", "p.npz", "p.ome.zarr"])
def test_other_formats_go_on_too(
    loaded: LoadedRuns, image: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = {"p.ome.zarr": "ome-zarr"}.get(name, name.partition(".")[2])
    config = PredictConfig(mpp=0.5, device="cpu", overlap_um=32, format=kind)
    out, whole = tmp_path / name, tmp_path / f"whole.{name}"
    begun(loaded, image, out, monkeypatch, format=kind)
    predict_slide([], image, out, config, SILENT, loaded)
    predict_slide([], image, whole, config, SILENT, loaded)
    assert content(out) == content(whole)


@pytest.mark.slow
def test_the_command_killed_at_any_moment(
    stain_run: Path, image: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    rng, out, n_kills = random.Random(0), tmp_path / "p.zarr", 0
    command = [
        sys.executable, "-m", "virchow_st_cli.main", "predict", stain_run, image, "--out", out,
        "--mpp", "0.5", "--overlap-um", "32", "--device", "cpu", "-q",
    ]  # fmt: skip
    took = 0.0
    while not out.exists():
        begun = time.monotonic()
        process = subprocess.Popen([str(word) for word in command], start_new_session=True)
        if n_kills >= 12:
            assert process.wait(120) == 0
            break
        # In the second half of what an undisturbed one takes: before, libraries are loaded.
        wait = rng.uniform(0.5, 1.0) * (took or 6.0)
        try:
            assert process.wait(wait) == 0
            took = time.monotonic() - begun
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            n_kills += 1
    assert n_kills > 0
    assert content(out) == undisturbed
    assert {p.name for p in tmp_path.iterdir()} == {"p.zarr", "p_tissue.png"}

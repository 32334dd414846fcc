"""Commands disturbed by a second command, a full disk or SIGTERM; support/trials.py does more."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from virchow_st.run.lock import RunLock
from virchow_st.runtime.lock import LOCK_NAME, locked

SMALL = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from virchow_st_cli.main import main
main()
"""


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def check_one_line(code: int, err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2, err
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert "fault of virchow_st" not in err
    return lines[0]


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("limit", [pytest.param(20_000, marks=pytest.mark.slow), 100_000])
def test_evaluating_on_a_full_disk_keeps_the_old_results(run: Path, limit: int) -> None:
    """It ended with a segmentation fault, after the old metrics had been deleted."""
    before = listing(run)
    typed = [sys.executable, "-c", SMALL, str(limit), "evaluate", str(run), "--device", "cpu"]
    done = subprocess.run(typed, capture_output=True, text=True, timeout=300)
    line = check_one_line(done.returncode, done.stderr)
    assert "raise the largest size of a file" in line
    assert listing(run) == before


@pytest.mark.usefixtures("unmeasured")
def test_simulating_on_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    typed = [sys.executable, "-c", SMALL, "50000", "simulate", str(tmp_path / "s"), "--bins", "256",
             "--genes", "60", "--patients", "P1"]  # fmt: skip
    done = subprocess.run(typed, capture_output=True, text=True, timeout=300)
    check_one_line(done.returncode, done.stderr)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("limit", [4_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_exporting_h5ad_on_a_full_disk_leaves_nothing(run: Path, limit: int) -> None:
    """It ended with a segmentation fault: HDF5 cannot close a file that it could not write."""
    before = listing(run.parent)
    out = run.parent / "e.h5ad"
    typed = [sys.executable, "-c", SMALL, str(limit), "export", str(run), "--out", str(out),
             "--format", "h5ad"]  # fmt: skip
    done = subprocess.run(typed, capture_output=True, text=True, timeout=300)
    line = check_one_line(done.returncode, done.stderr)
    assert f"{out}: File too large; raise the largest size of a file" in line
    assert listing(run.parent) == before


@pytest.mark.usefixtures("unmeasured")
def test_training_on_a_full_disk_says_that_nothing_was_begun(run: Path, tmp_path: Path) -> None:
    typed = [sys.executable, "-c", SMALL, "200", "train", "--config", str(run / "config.toml"),
             "--run", str(tmp_path / "new")]  # fmt: skip
    done = subprocess.run(typed, capture_output=True, text=True, timeout=300)
    line = check_one_line(done.returncode, done.stderr)
    assert "no run was started" in line
    assert "--resume" not in line
    assert not [p for p in tmp_path.iterdir() if "new" in p.name]


def test_who_writes_into_a_run_is_alone(vst, run: Path, tmp_path: Path) -> None:
    """Two evaluations left no metrics; two that resumed a training lost a line of its history."""
    before = listing(run)
    with RunLock() as lock:
        lock.take(run)
        for typed in (
            ["evaluate", run, "--device", "cpu"],
            ["figures", run],
            ["report", run],
            ["train", "--run", run, "--resume"],
        ):
            answer = vst(*typed)
            line = check_one_line(answer.code, answer.err)
            assert f"{run}: being written by process " in line
    assert listing(run) == before


def test_who_writes_an_output_is_alone(vst, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.zarr"
    for typed, place in (
        (["export", run, "--out", out], None),
        (["train", "--config", run / "config.toml", "--run", out], None),
        (["simulate", tmp_path / "s"], tmp_path / "s"),
        (["demo", tmp_path / "d"], tmp_path / "d"),
    ):
        target = place or out
        if place:
            place.mkdir()
        with locked(target, target / LOCK_NAME if place else None):
            answer = vst(*typed)
            assert f"{target}: being written by process " in check_one_line(answer.code, answer.err)
    assert not out.exists()


@pytest.mark.slow
def test_two_predictions_of_one_output(
    vst, stain_run: Path, simulated: Path, tmp_path: Path
) -> None:
    """The first ended with exit code 0 and half of its bins: the second deleted them meanwhile."""
    out = tmp_path / "p.zarr"
    typed = ["predict", stain_run, simulated / "P5" / "tissue_image.tif", "--device", "cpu"]
    assert vst(*typed, "--out", tmp_path / "alone.zarr").code == 0
    command = [sys.executable, "-m", "virchow_st_cli.main", *map(str, typed), "--out", str(out)]
    both = [
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], errors
    line = check_one_line(2, errors[codes.index(2)])
    assert "being written by process" in line or "is already there" in line
    assert listing(out) == listing(tmp_path / "alone.zarr")
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


SLOW = """
import sys, time
from virchow_st.evaluation import evaluate as module
from virchow_st_cli.main import main
real = module.fit_baselines
def fit(*arguments):
    print("begun", file=sys.stderr, flush=True)
    time.sleep(60)
module.fit_baselines = fit
main()
"""


@pytest.mark.parametrize(
    ("how", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_stopped_evaluation_keeps_the_old_results(run: Path, how: signal.Signals, code: int):
    before = listing(run)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "evaluate", str(run), "--device", "cpu"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        # A shell that started the tests in the background lets them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line == "begun\n":
            break
    time.sleep(0.1)
    process.send_signal(how)
    err = process.stderr.read()
    assert process.wait(timeout=60) == code, err
    process.stderr.close()
    assert "Traceback" not in err
    assert listing(run) == before


@pytest.mark.slow
def test_leftovers_of_the_dead_go(vst, run: Path) -> None:
    whole = listing(run)
    (run / ".metrics.json.part").write_text("half")
    (run / ".results.part").mkdir()
    (run / ".results.part" / "overview.h5").write_text("half")
    answer = vst("figures", run, "--genes", "GENE2")
    assert answer.code == 0, answer.err
    left = listing(run)
    assert not [name for name in left if name.split("/")[0].startswith(".")]
    assert json.loads(left["metrics.json"]) == json.loads(whole["metrics.json"])

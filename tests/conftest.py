"""Fixtures: a tiny simulated cohort and its stores, made once per session; runs; commands."""

from __future__ import annotations

import os
import tempfile

# Before torch is imported: on a shared machine, threads that wait for each other make the tiny
# networks of the tests many times slower than one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_place import Answer, Place
from figure_run import FigureRun, all_pictures
from s3_double import S3, running_s3, use
from tiny_cohort import STAIN, TINY
from virchow_st.extract.cohort import extract_cohort
from virchow_st.config import TrainConfig
from virchow_st.simulate import simulate_cohort


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with simulated slides of P1, P2 and P5 (9 patches each) and slides.csv; read only."""
    out = tmp_path_factory.mktemp("simulated")
    simulate_cohort(out, TINY)
    return out


@pytest.fixture(scope="session")
def stores(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each patient's store, made with the stain encoder; read only."""
    folder = tmp_path_factory.mktemp("stores")
    lines = ["patient,outs,image,store"]
    for patient in TINY.patients:
        slide = simulated / patient
        store = folder / f"{patient}.vst"
        lines.append(f"{patient},{slide / 'outs'},{slide / 'tissue_image.tif'},{store}")
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")
    outcomes = extract_cohort(folder / "slides.csv", STAIN)
    assert [o.n_patches for o in outcomes] == [9, 9, 9], outcomes
    return {outcome.patient: outcome.store for outcome in outcomes}


@pytest.fixture(scope="session")
def stain_run(stores: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluated run of the stain encoder, which can predict an image; read only."""
    from virchow_st_cli.main import run as vst

    run = tmp_path_factory.mktemp("stain") / "run"
    arguments = [
        "train", *stores.values(), "--run", run, "--test-patient", "P5", "--panel", "top:6",
        "--decoder", "linear", "--epochs", 1, "--device", "cpu",
    ]  # fmt: skip
    for command in arguments, ["evaluate", run, "--device", "cpu"]:
        assert vst([str(a) for a in command]) == 0
    return run


@pytest.fixture
def place(tmp_path: Path, simulated: Path, stores: dict[str, Path]) -> Place:
    """An empty folder for mistaken commands."""
    return Place(tmp_path, simulated, stores)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluated run on tiny stores in the same folder; see `make_run`; read only."""
    from tiny_run import make_run

    return make_run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def vst(capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run a command in this process: ``vst("inspect", store)`` → `Answer`."""
    from virchow_st_cli.main import run

    def call(*arguments: object) -> Answer:
        capfd.readouterr()
        code = run([str(a) for a in arguments])
        return Answer(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def started_s3() -> Iterator[S3]:
    """The server of `s3`, started once: a client takes half a second to make."""
    with running_s3() as found:
        yield found


@pytest.fixture
def s3(started_s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3:
    """An empty S3 on this machine, and an empty TMPDIR for this process and its children."""
    use(started_s3, monkeypatch)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return started_s3


@pytest.fixture(scope="session")
def drawn_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Result files of a run with six genes, seven patches and known rates; read only."""
    return FigureRun().write(tmp_path_factory.mktemp("drawn") / "poisson")


@pytest.fixture(scope="session")
def worse_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Result files of a worse prediction of the same slide; read only."""
    return FigureRun(skill=0.4, loss="mse").write(tmp_path_factory.mktemp("worse") / "mse")


@pytest.fixture(scope="session")
def pictures(drawn_run: Path, worse_run: Path) -> dict[str, list[Any]]:
    """All pictures of the run, compared with the worse one: name → pages."""
    return all_pictures(drawn_run, worse_run, n_genes=2)


@pytest.fixture(scope="session")
def evaluated_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluated run of five genes whose test patient T has two slides, T-1 and T-2; read only.

    Its stores are those of `tiny_store`; T-1 is 256 × 256 bins, four whole patches.
    """
    from tiny_store import write_store

    from virchow_st.evaluation.evaluate import evaluate_run
    from virchow_st.training.train import train

    folder = tmp_path_factory.mktemp("evaluated")
    slides = (("A1", "A", 4), ("T1", "T", 4), ("T2", "T", 3))
    for seed, (slide, patient, n_patches) in enumerate(slides):
        write_store(folder / f"{slide}.vst", patient, n_patches, seed=seed, slide=slide)
    config = TrainConfig(
        stores=tuple(str(folder / f"{slide}.vst") for slide, _, _ in slides),
        test_patient="T", panel="top:5", decoder="linear", epochs=1, batch_size=2, accumulate=1,
        lr=5e-3, warmup_epochs=0, device="cpu",
    )  # fmt: skip
    train(folder / "run", config)
    evaluate_run(folder / "run", "cpu")
    return folder / "run"


@pytest.fixture(scope="module")
def markers_for_tissue() -> Iterator[None]:
    """Disable the checks of stain and fit, for slides with drawn markers and random counts.

    Tests of geometry need them; whether a picture can be H&E and belongs to its counts is tested in
    tests/slide/test_stain_check.py and tests/extract/test_fit.py.
    """
    from virchow_st.slide.stain_check import StainCheck

    with pytest.MonkeyPatch.context() as patched:
        room = "virchow_st.extract.slide"
        patched.setattr(f"{room}.stain_of", lambda *_: StainCheck(1.0, ""))
        patched.setattr(f"{room}.check_without_pictures", lambda *_: None)
        yield


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes whose files are limited in size do not measure coverage: its file has no room."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)

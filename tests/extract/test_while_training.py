"""Extracting slides while training reads stores does not disturb the reader."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_place import Answer, Vst
from tiny_training import few_steps, history

from virchow_st.config import TrainConfig
from virchow_st.errors import StoreError
from virchow_st.runtime.progress import Silent
from virchow_st.store.reader import open_store
from virchow_st.store.writer import StoreWriter
from virchow_st.training.train import train


class Meanwhile(Silent):
    """Calls a function once: stores are open then, of their patches none has been read."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call, self.n_calls = call, 0

    def note(self, text: str) -> None:
        if "patches to train on" in text:
            self.n_calls += 1
            self.call()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def extract_command(slide: Path, store: Path, *more: object) -> list[object]:
    return [
        "extract", slide / "outs", "--image", slide / "tissue_image.tif", "--store", store,
        "--patient", store.stem, "--encoder", "stain", "--device", "cpu", *more,
    ]  # fmt: skip


def test_extraction_beside_training_and_into_what_it_reads(
    vst: Vst, simulated: Path, stores: dict[str, Path], tmp_path: Path
) -> None:
    for patient in ("P1", "P5"):
        shutil.copytree(stores[patient], tmp_path / f"{patient}.vst")
    before = {patient: contents(tmp_path / f"{patient}.vst") for patient in ("P1", "P5")}
    config = TrainConfig(
        stores=tuple(str(tmp_path / f"{patient}.vst") for patient in ("P1", "P5")),
        test_patient="P5", panel="top:6", decoder="linear", epochs=2, batch_size=4, accumulate=1,
        device="cpu",
    )  # fmt: skip
    answers: dict[str, Answer] = {}

    def extract_all() -> None:
        read = tmp_path / "P1.vst"
        answers["another slide"] = vst(*extract_command(simulated / "P2", tmp_path / "P2.vst"))
        answers["the same again"] = vst(*extract_command(simulated / "P1", read))
        answers["another slide into it"] = vst(*extract_command(simulated / "P2", read))
        answers["other options"] = vst(
            *extract_command(simulated / "P1", read, "--min-tissue", "0.2")
        )

    meanwhile = Meanwhile(extract_all)
    with few_steps(4):
        train(tmp_path / "alone", config)
        train(tmp_path / "beside", config, progress=meanwhile)
    assert meanwhile.n_calls == 1
    assert answers["another slide"].code == 0, answers
    assert contents(tmp_path / "P2.vst") == contents(stores["P2"])
    assert answers["the same again"].code == 0, answers
    assert "already complete" in answers["the same again"].err
    for name in ("another slide into it", "other options"):
        code, _, err = answers[name]
        assert code == 2, (name, err)
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert "P1.vst: is finished, but was made from" in line
    for patient, files in before.items():
        assert contents(tmp_path / f"{patient}.vst") == files
    assert history(tmp_path / "beside") == history(tmp_path / "alone")
    for name in ("last", "best"):
        tensors = Path("checkpoints") / name / "tensors.safetensors"
        assert (tmp_path / "beside" / tensors).read_bytes() == (
            tmp_path / "alone" / tensors
        ).read_bytes()


def test_a_store_that_is_being_written_is_not_trained_on(
    vst: Vst, stores: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "new.vst"
    with StoreWriter(path, {"format": "of a test"}):
        with pytest.raises(StoreError, match=r"new\.vst: unfinished, being written by"):
            open_store(path)
        answer = vst("train", path, stores["P5"], "--run", tmp_path / "run", "--test-patient", "P5")
        assert answer.code == 2
        assert "new.vst: unfinished, being written by process" in answer.err
    assert not (tmp_path / "run").exists()

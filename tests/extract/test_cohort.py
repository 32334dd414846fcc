"""Lists of slides: what is skipped, what fails, what goes on, and several processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file
from tiny_cohort import STAIN
from tiny_vit import tiny_published, tiny_virchow

from virchow_st.extract import remote
from virchow_st.extract.cohort import extract_cohort, read_cohort
from virchow_st.models.encoders.published import PUBLISHED, VIRCHOW2
from virchow_st.models.encoders.stain import StainEncoder
from virchow_st.models.encoders.weights import parameters_hash
from virchow_st.runtime.distributed import Processes
from virchow_st.runtime.lock import Lock
from virchow_st.store.manifest import LOCK
from virchow_st.store.reader import open_store, verify

SQUARE = Path("binned_outputs") / "square_002um"
PATIENTS = ("P1", "P2", "P5")


@pytest.fixture
def slides(simulated: Path, tmp_path: Path) -> Path:
    """A copy of the simulated cohort that a test may break; its stores lie beside the slides."""
    folder = tmp_path / "cohort"
    for patient in PATIENTS:
        shutil.copytree(simulated / patient, folder / patient)
    shutil.copy(simulated / "slides.csv", folder)
    return folder


def break_matrix(slides: Path, patient: str) -> None:
    (slides / patient / "outs" / SQUARE / "filtered_feature_bc_matrix.h5").write_bytes(b"broken")


def test_a_broken_slide_does_not_stop_the_others(
    vst: Callable[..., Any], simulated: Path, slides: Path
) -> None:
    break_matrix(slides, "P2")
    answer = vst("extract", "--manifest", slides / "slides.csv", "--encoder", "stain")
    assert answer.code == 1
    warnings = [line for line in answer.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "filtered_feature_bc_matrix.h5" in warnings[0]
    assert "Traceback" not in answer.err
    assert {p.name for p in slides.iterdir()} == {
        "P1", "P2", "P5", "P1.vst", "P5.vst", "slides.csv", "slides.cohort",
    }  # fmt: skip
    lines = answer.out.splitlines()
    for patient in ("P1", "P5"):
        assert any(line.startswith(f"│ {patient} ") and "complete" in line for line in lines)
        assert len(open_store(slides / f"{patient}.vst")) == 9
    assert any(line.startswith("│ P2 ") for line in lines)

    shutil.copytree(simulated / "P2", slides / "P2", dirs_exist_ok=True)
    outcomes = extract_cohort(slides / "slides.csv", STAIN)
    assert [(o.patient, o.n_patches, o.text) for o in outcomes] == [
        ("P1", 9, "was complete"), ("P2", 9, "complete"), ("P5", 9, "was complete"),
    ]  # fmt: skip


def test_a_store_that_another_process_writes_is_waited_for(slides: Path) -> None:
    """As of a worker that stood still for so long that its claim lapsed, and ends."""
    (slides / "slides.csv").write_text(
        "patient,outs,image,store\nP1,P1/outs,P1/tissue_image.tif,P1.vst\n", "utf-8"
    )
    (slides / "P1.vst").mkdir()
    lock = Lock(slides / "P1.vst", slides / "P1.vst" / LOCK)
    timer = threading.Timer(2, lock.release)
    timer.start()
    (outcome,) = extract_cohort(slides / "slides.csv", STAIN)
    timer.join()
    assert (outcome.n_patches, outcome.text) == (9, "complete")


def test_paths_of_a_cohort_are_relative_to_its_list(tmp_path: Path) -> None:
    path = tmp_path / "slides.csv"
    # as Excel writes it: a byte order mark, more columns, another order
    path.write_text(
        "\ufeffnote,store,patient,outs,image\nx,a.vst,A,a/outs,/scans/a.svs\n", encoding="utf-8"
    )
    (slide,) = read_cohort(path)
    assert slide.patient == "A"
    assert (slide.outs, slide.store) == (tmp_path / "a/outs", tmp_path / "a.vst")
    assert slide.image == Path("/scans/a.svs")


def test_a_fault_in_one_slide_does_not_stop_the_others(
    slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also an error that nobody foresaw, while a slide is opened or while it is encoded."""
    real_open, real_encode, n_encoded = remote.open_slide, StainEncoder.encode, [0]

    def open_slide(outs: Path, *rest: Any) -> Any:
        if "P1" in str(outs):
            raise ZeroDivisionError("nobody foresaw this")
        return real_open(outs, *rest)

    def encode(self: StainEncoder, images: np.ndarray) -> Any:
        n_encoded[0] += 1
        if n_encoded[0] == 1:
            raise RuntimeError("nor this")
        return real_encode(self, images)

    monkeypatch.setattr(remote, "open_slide", open_slide)
    monkeypatch.setattr(StainEncoder, "encode", encode)
    outcomes = extract_cohort(slides / "slides.csv", STAIN)
    assert [o.n_patches for o in outcomes] == [None, None, 9]
    assert outcomes[0].text.startswith("ZeroDivisionError: nobody foresaw this; extract the slide")
    assert outcomes[1].text.startswith("RuntimeError: nor this; ")
    assert outcomes[2].text == "complete"


def test_the_next_slide_is_opened_while_one_is_encoded(
    slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open, real_encode = remote.open_slide, StainEncoder.encode
    opened = {patient: threading.Event() for patient in PATIENTS}
    order: list[str] = []

    def open_slide(outs: Path, *rest: Any) -> Any:
        made = real_open(outs, *rest)
        order.append(f"open {made.patient}")
        opened[made.patient].set()
        return made

    def encode(self: StainEncoder, images: np.ndarray) -> Any:
        number = sum(text.startswith("encode") for text in order)
        if number < 2:  # what comes next is ready before this one's tokens are
            assert opened[PATIENTS[number + 1]].wait(60)
        order.append(f"encode {PATIENTS[number]}")
        return real_encode(self, images)

    monkeypatch.setattr(remote, "open_slide", open_slide)
    monkeypatch.setattr(StainEncoder, "encode", encode)
    outcomes = extract_cohort(slides / "slides.csv", STAIN)
    assert [o.text for o in outcomes] == ["complete"] * 3
    assert order == ["open P1", "open P2", "encode P1", "open P5", "encode P2", "encode P5"]


def test_virchow2_from_a_local_file_over_a_cohort(
    vst: Callable[..., Any], slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command, its architecture made tiny: the licence shown once, kept in every manifest."""
    model = tiny_virchow(4)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setitem(PUBLISHED, VIRCHOW2.repo.lower(), tiny_published())
    answer = vst(
        "extract", "--manifest", slides / "slides.csv", "--weights", tmp_path / "w.safetensors",
        "--device", "cpu",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    warnings = [line for line in answer.err.splitlines() if line.startswith("warning: ")]
    assert warnings == [f"warning: virchow2: {VIRCHOW2.licence}"]
    for patient in PATIENTS:
        store = open_store(slides / f"{patient}.vst")
        assert store.token_shape == (16, 16, 48)
        assert store.manifest["encoder"] == {
            "name": "virchow2",
            "weights": parameters_hash(model),
            "licence": VIRCHOW2.licence,
        }


# --- several processes ----------------------------------------------------------------------------


def test_two_processes_share_out_the_slides(slides: Path, stores: dict[str, Path]) -> None:
    """As torchrun started them: no slide twice, none left out, a table of all, exit code 1."""
    break_matrix(slides, "P2")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "virchow_st_cli.main", "extract", "--manifest", str(slides / "slides.csv"),
         "--encoder", "stain", "--device", "cpu"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "exitcode  : 1" in done.stderr  # of rank 0, by its own will
    rows = {row.split()[1]: row for row in done.stdout.splitlines() if row.startswith("│ P")}
    assert set(rows) == set(PATIENTS)
    for patient in ("P1", "P5"):
        assert "complete" in rows[patient]
        store = open_store(slides / f"{patient}.vst")
        assert verify(store) == []
        assert store.manifest["records_xxh64"] == hash_of(stores[patient])
    assert not (slides / "P2.vst").exists()
    assert done.stderr.count("torchrun is no longer needed") == 1
    told = [line for line in done.stderr.splitlines() if line.endswith(".vst: complete")]
    assert sorted(told) == ["P1.vst: complete", "P5.vst: complete"]


def hash_of(store: Path) -> str:
    return str(json.loads((store / "store.json").read_text())["records_xxh64"])


def test_a_single_slide_is_not_for_several_processes(
    vst: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", 1), ("WORLD_SIZE", 2), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    answer = vst("extract", "outs", "--image", "i", "--store", "s", "--patient", "p")
    assert answer.code == 2
    assert "expected --manifest" in answer.err


def test_ranks_are_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Processes.here() == Processes(0, 1, 0, 1)
    for name, value in (("RANK", 5), ("WORLD_SIZE", 8), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 4)):
        monkeypatch.setenv(name, str(value))
    assert Processes.here() == Processes(5, 8, 1, 4)

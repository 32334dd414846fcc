"""Training reads nothing of the test patient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_place import Vst

from virchow_st.store.reader import Patch, open_store
from virchow_st.store.same_slide import check_different_slides


def test_results_are_independent_of_the_test_patient(
    vst: Vst, stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No patch of the test patient is read, so training without its store would be the same."""
    arguments = [
        "train", stores["P1"], stores["P2"], stores["P5"], "--run", tmp_path / "r",
        "--test-patient", "P5", "--panel", "top:20", "--decoder", "linear", "--epochs", 1,
        "--lr", "1e-3", "--batch-size", 4, "--accumulate", 1, "--device", "cpu",
    ]  # fmt: skip
    # Counts are compared beforehand to find a slide that is given twice; it is done once a process.
    check_different_slides([open_store(store) for store in stores.values()])
    read: set[str] = set()
    unpack = Patch._unpack

    def watched(self: Patch, *rest: Any) -> Any:
        read.add(self.store.patient)
        return unpack(self, *rest)

    monkeypatch.setattr(Patch, "_unpack", watched)
    assert vst(*arguments).code == 0
    assert read == {"P1", "P2"}

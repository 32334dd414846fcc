"""What the scores of a run rest on: what was chosen on what, and how many patients they are of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from virchow_st.predict.load import Run
from virchow_st.store.reader import Store


def protocol(run: Run, stores: Sequence[Store], n_blocks: int) -> dict[str, Any]:
    """``protocol`` of ``metrics.json``, see docs/metrics.md.

    Args:
        run: The run.
        stores: Its stores.
        n_blocks: Number of spatial blocks of the test slides.
    """

    def patients(*parts: Sequence[Any]) -> list[str]:
        return sorted({stores[member.store].patient for part in parts for member in part})

    test = patients(run.split.test)
    training = patients(run.split.train, run.split.validation)
    return {
        "genes_chosen_on": (
            "counts of the training patients"
            if run.config.panel.rpartition(":")[0] or run.config.panel in ("all", "top50")
            else "a file, before training"
        ),
        "epoch_chosen_on": "validation patches of the training patients",
        "settings_chosen_on": "config.toml, before training",
        "exposure": run.config.exposure if "exposure_xxh64" in run.state else "none",
        "n_training_patients": len(training),
        "n_test_patients": len(test),
        "resampled": "spatial blocks of the test slides",
        "n_resampled": n_blocks,
    }

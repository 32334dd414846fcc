"""Exposure that a run trains with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from virchow_st.config import TrainConfig
from virchow_st.run.exposure import CohortExposure
from virchow_st.run.lock import CHECKPOINTS
from virchow_st.run.split import Split
from virchow_st.run.state import read_state
from virchow_st.runtime.progress import Progress
from virchow_st.store.reader import Store


def training_exposure(
    run: Path,
    config: TrainConfig,
    stores: Sequence[Store],
    split: Split,
    resume: bool,
    progress: Progress,
) -> CohortExposure | None:
    """Measure the exposure of the training slides, or read that of a run to resume.

    Args:
        run: Run directory; read only with ``resume``.
        config: Settings of the run.
        stores: Stores of the run; of the test patient's, only the list of genes is read.
        split: Training and validation patches.
        resume: Whether the run was begun before.
        progress: Receives the number of patches read, and a line per slide.

    Returns:
        None if every tissue bin has an exposure of 1: with ``--exposure none``, and in runs of
        older versions.

    Raises:
        ConfigError: A slide has no UMIs, or the file of the run to resume is not what it was.
    """
    if resume:
        xxh64 = read_state(run / CHECKPOINTS / "last").get("exposure_xxh64")
        return None if xxh64 is None else CohortExposure.read(run, xxh64, stores)
    if config.exposure == "none":
        return None
    indices = sorted({member.store for member in (*split.train, *split.validation)})
    exposure = CohortExposure.of_training(config.exposure, stores, indices, progress)
    for i, slide in exposure.slides.items():
        rows, cols = slide.rows.sd, slide.cols.sd
        stripes = f", rows differ by {rows:.1%} and columns by {cols:.1%}" if rows or cols else ""
        progress.note(
            f"exposure of {stores[i].patient}: depth {exposure.relative_depth(i):.3g}{stripes}"
        )
    return exposure

"""Benchmarks of ``vst bench``, on generated data: the package, a plain implementation, the machine.

docs/benchmarks.md explains how to read the tables.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from virchow_st.runtime.progress import SILENT, Progress

if TYPE_CHECKING:
    from virchow_st.bench.tables import Table

TARGETS = ("ingest", "extract", "store", "loss", "metrics", "train")


def run_target(
    target: str,
    folder: Path,
    progress: Progress = SILENT,
    *,
    encoder: str = "stain",
    weights: str = "",
    random_weights: bool = False,
    device: str = "auto",
) -> list[Table]:
    """Measure one of `TARGETS`, in seconds to a few minutes.

    Args:
        target: Name of the target.
        folder: Scratch folder, on the disk to measure.
        progress: Receives notes, warnings and step counts.
        encoder, weights, random_weights: Encoder of the targets extract and train; see
            `virchow_st.bench.encoder.open_encoder`.
        device: Device of encoder, decoder and loss.

    Raises:
        ConfigError: The encoder or the device is not available.
        AssertionError: Two implementations that must agree do not; their times are not reported.
    """
    if target == "ingest":
        from virchow_st.bench import ingest

        return ingest.measure(folder, progress)
    if target == "store":
        from virchow_st.bench import store

        return store.measure(folder, progress)
    if target == "loss":
        from virchow_st.bench import loss

        return loss.measure(progress, device=device)
    if target == "metrics":
        from virchow_st.bench import metrics

        return metrics.measure(progress)
    from virchow_st.bench.encoder import open_encoder

    opened = open_encoder(encoder, weights, random_weights, device)
    if target == "extract":
        from virchow_st.bench import extract

        return extract.measure(folder, progress, encoder=opened)
    if target == "train":
        from virchow_st.bench import train

        return train.measure(folder, progress, encoder=opened, device=device)
    raise ValueError(f"target: expected one of {', '.join(TARGETS)}; got {target!r}")

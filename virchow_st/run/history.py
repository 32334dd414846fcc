"""The training history: ``history.jsonl``, ``best_metrics.json`` and TensorBoard.

docs/training.md describes a line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from virchow_st.errors import ConfigError
from virchow_st.run.events import Events
from virchow_st.runtime.atomic import write_json, write_text
from virchow_st.schema import Count, Length, read_json_lines

Line = dict[str, Any]
HISTORY = "history.jsonl"
BEST_FORMAT = "virchow_st.best/1"
EVENTS = "tensorboard"
"""Folder of TensorBoard's event files in a run."""


ByScale = dict[int, float]
"""A score for each bin side in µm; NaN where it is not defined."""


@dataclass(frozen=True)
class Epoch:
    """One line of the history."""

    epoch: int
    train_loss: ByScale
    validation_loss: ByScale  # of each scale, unweighted
    validation_pcc: ByScale
    weights: ByScale  # of the scales in the loss
    best: bool  # better than every epoch before it


_Scales = Annotated[dict[Literal["2", "4", "8", "16"], float | None], Length(1)]


class _Train(TypedDict):
    loss: _Scales


class _Validation(TypedDict):
    loss: _Scales
    pcc: _Scales


class _Line(TypedDict):
    epoch: Count
    train: _Train
    validation: _Validation
    weights: _Scales
    best: bool


def read_history(run: Path, epochs: int | None = None) -> list[Epoch]:
    """Read ``history.jsonl``, in order of epochs.

    Args:
        run: the run directory.
        epochs: how many lines there have to be at least; None for one.

    Raises:
        ConfigError: it is missing or damaged, or lacks epochs.
    """
    path = run / HISTORY
    remedy = "finish the run with vst train --resume" if epochs is None else "train again"
    lines = read_json_lines(path, _Line, remedy, missing="run `vst train` first")
    wanted = epochs or 1
    if [line["epoch"] for line in lines[:wanted]] != list(range(1, wanted + 1)):
        raise ConfigError(
            f"{path}: expected a line for each of {wanted} epochs; got {len(lines)} lines; {remedy}"
        )
    return [
        Epoch(
            epoch=line["epoch"],
            train_loss=_by_um(line["train"]["loss"]),
            validation_loss=_by_um(line["validation"]["loss"]),
            validation_pcc=_by_um(line["validation"]["pcc"]),
            weights=_by_um(line["weights"]),
            best=line["best"],
        )
        for line in lines
    ]


def _by_um(values: Mapping[str, float | None]) -> ByScale:
    return {int(scale): math.nan if v is None else float(v) for scale, v in values.items()}


class History:
    """Writes the history of a run, one line per epoch.

    Args:
        run: the run directory.
        epoch: epochs done before, whose lines stay; what a killed run wrote beyond them goes.
    """

    def __init__(self, run: Path, epoch: int) -> None:
        self._path = run / HISTORY
        self._lines: list[str] = []
        if epoch:
            read_history(run, epoch)  # what is to be gone on from is checked as what is drawn
            self._lines = self._path.read_text("utf-8").split("\n")[:epoch]
        self._events = Events(run / EVENTS, epoch) if find_spec("tensorboard") else None

    def add(self, line: Line) -> None:
        """Write the line of the next epoch; the file is complete at every moment."""
        self._lines.append(json.dumps(line))
        write_text(self._path, "\n".join(self._lines) + "\n")
        if self._events is not None:
            for name, value in _scalars(line):
                self._events.add(name, value, line["epoch"])
            self._events.flush()

    def close(self) -> None:
        """Close TensorBoard's file; the lines have been written already."""
        if self._events is not None:
            self._events.close()

    def finish(self, best_epoch: int, about: Line) -> None:
        """Write ``best_metrics.json``, which marks the run as finished.

        Args:
            best_epoch: epoch whose validation scores are written.
            about: what else to write.
        """
        best = json.loads(self._lines[best_epoch - 1])["validation"]
        write_json(
            self._path.with_name("best_metrics.json"),
            {"format": BEST_FORMAT, "epoch": best_epoch, **best, **about},
        )


def by_scale(scales_um: Sequence[int], values: Iterable[float]) -> dict[str, float | None]:
    """Values by scale; null in JSON for one that is undefined, such as a constant's PCC."""
    return {
        str(scale): round(float(v), 6) if math.isfinite(v) else None
        for scale, v in zip(scales_um, values, strict=True)
    }


def summary(line: Line, epochs: int) -> str:
    """A line of the history as text, with losses and PCC by scale in increasing order."""
    return (
        f"epoch {line['epoch']}/{epochs}: loss {_texts(line['train']['loss'])}, "
        f"weights {_texts(line['weights'])}, validation PCC {_texts(line['validation']['pcc'])}"
        f"{' (best)' if line['best'] else ''}, {line['patches_per_s']:.3g} patches/s"
    )


def _texts(values: Mapping[str, float | None]) -> str:
    return " ".join("–" if v is None else f"{v:.3f}" for v in values.values())


def _scalars(line: Line) -> Iterable[tuple[str, float]]:
    """Figures of a line by the name of their chart; the undefined ones are left out."""
    by_scale = {
        "train/loss": line["train"]["loss"],
        "validation/loss": line["validation"]["loss"],
        "validation/pcc": line["validation"]["pcc"],
        "weights": line["weights"],
    }
    for name, values in by_scale.items():
        for scale, value in values.items():
            if value is not None:
                yield f"{name}/{scale}um", value
    for name in ("lr", "patches_per_s"):
        yield name, line[name]
    if math.isfinite(line["validation"]["score"]):
        yield "validation/score", line["validation"]["score"]

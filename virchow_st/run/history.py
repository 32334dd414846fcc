"""What a training tells of its epochs: ``history.jsonl``, ``best_metrics.json``, TensorBoard.

docs/training.md says what a line holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from virchow_st.runtime.atomic import write_json, write_text

Line = dict[str, Any]
BEST_FORMAT = "virchow_st.best/1"
EVENTS = "tensorboard"
"""Folder of TensorBoard's event files in a run."""


class History:
    """The lines of a run, one an epoch.

    Args:
        run: the run directory.
        epoch: epochs done before, whose lines stay; what a killed run wrote beyond them goes.
    """

    def __init__(self, run: Path, epoch: int) -> None:
        self._path = run / "history.jsonl"
        text = self._path.read_text("utf-8") if self._path.exists() else ""
        self._lines = text.splitlines()[:epoch]
        self._events = _events(run, epoch)

    def add(self, line: Line) -> None:
        """Write the line of the next epoch; the file is there whole at every moment."""
        self._lines.append(json.dumps(line))
        write_text(self._path, "\n".join(self._lines) + "\n")
        if self._events is not None:
            for name, value in _scalars(line):
                self._events.add_scalar(name, value, line["epoch"])
            self._events.flush()

    def close(self, best_epoch: int, about: Line) -> None:
        """Write ``best_metrics.json``, which says that the run is finished.

        Args:
            best_epoch: whose validation figures they are.
            about: what else to write.
        """
        if self._events is not None:
            self._events.close()
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
    """A line of the history for people: the figures by scale, in increasing order."""
    return (
        f"epoch {line['epoch']}/{epochs}: loss {_texts(line['train']['loss'])}, "
        f"weights {_texts(line['weights'])}, validation PCC {_texts(line['validation']['pcc'])}"
        f"{' (best)' if line['best'] else ''}, {line['patches_per_s']:.3g} patches/s"
    )


def _texts(values: Mapping[str, float | None]) -> str:
    return " ".join("–" if v is None else f"{v:.3f}" for v in values.values())


def _events(run: Path, epoch: int) -> Any:
    """TensorBoard's writer where it is installed; events of epochs to be repeated are dropped."""
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(run / EVENTS, purge_step=epoch + 1 if epoch else None)


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

"""Read the tables that ``vst train`` and ``vst evaluate`` left in a run directory.

=======================  ============  ===================================
file                     written by    read as
=======================  ============  ===================================
``history.jsonl``        vst train     `Epoch`, one a line
``metrics.json``         vst evaluate  `TestMetrics`
``per_gene.csv``         vst evaluate  `GeneScore`, one a gene and scale
=======================  ============  ===================================
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from virchow_st.errors import ConfigError

METRICS_FORMAT = "virchow_st.metrics/1"

ByScale = dict[int, float]
"""A figure for each bin side in µm; NaN where it is not defined."""


@dataclass(frozen=True)
class Gene:
    """A gene of the panel; the id is unique, the symbol need not be."""

    id: str
    symbol: str


@dataclass(frozen=True)
class GeneScore:
    """One gene at one scale over the test slides; NaN where a figure is not defined."""

    gene: Gene
    scale_um: int
    mean: float  # observed UMIs per bin of this scale
    nonzero: float  # share of bins with a UMI
    pcc: float
    pcc_ceiling: float
    pcc_shuffled: float
    ssim: float
    ssim_shuffled: float
    d2_poisson: float
    calibration: float


_FIGURES = tuple(field.name for field in fields(GeneScore) if field.type == "float")


@dataclass(frozen=True)
class Epoch:
    """One line of the history."""

    epoch: int
    train_loss: ByScale
    validation_loss: ByScale  # of each scale, unweighted
    validation_pcc: ByScale
    weights: ByScale  # of the scales in the loss
    best: bool  # better than every epoch before it


@dataclass(frozen=True)
class TestMetrics:
    """The figures of ``metrics.json`` that pictures show."""

    __test__ = False  # its name must not make pytest collect it

    loss: str
    decoder: str
    epoch: int
    pcc: ByScale  # averaged over genes


def read_scores(run: Path) -> list[GeneScore]:
    """``per_gene.csv``, in its order."""
    path = run / "per_gene.csv"
    rows = list(csv.DictReader(_text(path, f"vst evaluate {run}").splitlines()))
    if not rows:
        raise ConfigError(f"{path}: holds no gene; run `vst evaluate {run}` again")
    try:
        return [
            GeneScore(
                gene=Gene(row["gene_id"], row["symbol"]),
                scale_um=int(row["scale_um"]),
                **{name: _number(row[name]) for name in _FIGURES},
            )
            for row in rows
        ]
    except KeyError as e:
        raise ConfigError(
            f"{path}: column {e} is missing; run `vst evaluate {run}` again"
        ) from None
    except (TypeError, ValueError) as e:
        raise ConfigError(f"{path}: {e}; run `vst evaluate {run}` again") from None


def read_metrics(run: Path) -> TestMetrics:
    """``metrics.json``."""
    path = run / "metrics.json"
    text = _text(path, f"vst evaluate {run}")
    try:
        found = json.loads(text)
        if found["format"] != METRICS_FORMAT:
            raise ValueError(f"expected format {METRICS_FORMAT!r}, got {found['format']!r}")
        return TestMetrics(
            loss=str(found["loss"]),
            decoder=str(found["decoder"]),
            epoch=int(found["epoch"]),
            pcc={int(scale): _number(at["pcc"]) for scale, at in found["scales"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        reason = f"{e} is missing" if isinstance(e, KeyError) else str(e)
        raise ConfigError(f"{path}: {reason}; run `vst evaluate {run}` again") from None


def read_history(run: Path) -> list[Epoch]:
    """``history.jsonl``, in order of epochs."""
    path = run / "history.jsonl"
    epochs = []
    for n, line in enumerate(_text(path, "vst train").splitlines(), start=1):
        try:
            epochs.append(_epoch(json.loads(line)))
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            reason = f"{e} is missing" if isinstance(e, KeyError) else str(e)
            raise ConfigError(
                f"{path}: line {n}: {reason}; finish the run with vst train --resume"
            ) from None
    if not epochs:
        raise ConfigError(f"{path}: holds no epoch; finish the run with vst train --resume")
    return epochs


def _epoch(line: Mapping[str, Any]) -> Epoch:
    return Epoch(
        epoch=int(line["epoch"]),
        train_loss=_by_scale(line["train"]["loss"]),
        validation_loss=_by_scale(line["validation"]["loss"]),
        validation_pcc=_by_scale(line["validation"]["pcc"]),
        weights=_by_scale(line["weights"]),
        best=bool(line["best"]),
    )


def _by_scale(values: Mapping[str, Any]) -> ByScale:
    return {int(scale): _number(value) for scale, value in values.items()}


def _number(value: Any) -> float:
    """A float; JSON's null and an empty CSV cell stand for a figure that is not defined."""
    return math.nan if value is None or value == "" else float(value)


def _text(path: Path, command: str) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found; run `{command}` first") from None
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read ({e}); run `{command}` again") from None

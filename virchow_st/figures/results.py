"""Read what ``vst train`` and ``vst evaluate`` left in a run directory; nothing else reads it here.

=======================  ============  ====================================================
file                     written by    read as
=======================  ============  ====================================================
``history.jsonl``        vst train     `Epoch`, one a line
``metrics.json``         vst evaluate  `TestMetrics`
``per_gene.csv``         vst evaluate  `GeneScore`, one a gene and scale
``maps/<patient>.h5``    vst evaluate  `SlideResult`, its gene layers read one at a time
=======================  ============  ====================================================
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.types import Array, BoolArray, Float32Array, UInt8Array

MAPS_FORMAT = "virchow_st.maps/1"
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
    pcc: float
    pcc_ceiling: float
    ssim: float
    ssim_shuffled: float


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

    pcc: ByScale  # averaged over genes


@dataclass(frozen=True)
class SlideResult:
    """One test slide, open for reading; arrays are in bin orientation (row down = array_row up)."""

    path: Path
    patient: str
    row0: int  # array_row of the first bin
    col0: int  # array_col of the first bin
    genes: tuple[Gene, ...]
    scored_mask: BoolArray  # (R, C), True for tissue bins of evaluated patches
    image: UInt8Array  # (2R, 2C, 3), 1 µm/px
    _file: Any

    def layers(self, gene: Gene) -> tuple[Float32Array, Array]:
        """Rate float32 and counts uint16, both (R, C) and per 2 µm bin, of one gene."""
        ids = [g.id for g in self.genes]
        if gene.id not in ids:
            raise ConfigError(
                f"{self.path}: gene {gene.id} of per_gene.csv is not in it; run vst evaluate again"
            )
        g = ids.index(gene.id)
        rate = self._file["rate"][g].astype(np.float32)
        return rate, self._file["counts"][g].astype(np.uint16, copy=False)


def find_maps(run: Path) -> list[Path]:
    """The maps files of a run in order of their names; `ConfigError` if there is none."""
    if not run.is_dir():
        raise ConfigError(f"{run}: no such folder; give the folder that vst train wrote")
    paths = sorted((run / "maps").glob("*.h5"))
    if not paths:
        raise ConfigError(f"{run / 'maps'}: holds no .h5 file; run `vst evaluate {run}` first")
    return paths


@contextmanager
def open_maps(path: Path) -> Iterator[SlideResult]:
    """Open ``maps/<patient>.h5``; mask and image are read now, genes when asked for.

    Raises `ConfigError` for a file that is damaged or of another format.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read as HDF5 ({e}); run vst evaluate again") from None
    with file:
        if (found := file.attrs.get("format")) != MAPS_FORMAT:
            raise ConfigError(
                f"{path}: expected format {MAPS_FORMAT!r}; got {found!r}; run vst evaluate again"
            )
        yield _slide_result(path, file)


def _slide_result(path: Path, file: Any) -> SlideResult:
    try:
        shape = file["rate"].shape
        ids, symbols = file["gene_id"].asstr()[:], file["gene_symbol"].asstr()[:]
        slide = SlideResult(
            path=path,
            patient=str(file.attrs["patient"]),
            row0=int(file.attrs["row0"]),
            col0=int(file.attrs["col0"]),
            genes=tuple(Gene(str(i), str(s)) for i, s in zip(ids, symbols, strict=True)),
            scored_mask=file["scored_mask"][:].astype(bool),
            image=file["image"][:],
            _file=file,
        )
        counts_shape = file["counts"].shape
    except (KeyError, ValueError) as e:
        raise ConfigError(f"{path}: incomplete ({e}); run vst evaluate again") from None
    rows, cols = slide.scored_mask.shape
    want = (len(slide.genes), rows, cols)
    if not (shape == counts_shape == want and slide.image.shape == (2 * rows, 2 * cols, 3)):
        raise ConfigError(
            f"{path}: expected rate and counts {want} and image {(2 * rows, 2 * cols, 3)}; got "
            f"{shape}, {counts_shape} and {slide.image.shape}; run vst evaluate again"
        )
    return slide


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
                mean=_number(row["mean"]),
                pcc=_number(row["pcc"]),
                pcc_ceiling=_number(row["pcc_ceiling"]),
                ssim=_number(row["ssim"]),
                ssim_shuffled=_number(row["ssim_shuffled"]),
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
        pcc = {int(scale): _number(at["pcc"]) for scale, at in found["scales"].items()}
        return TestMetrics(pcc)
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

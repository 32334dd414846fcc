"""The files of figures that ``vst evaluate`` leaves in a run: written whole, checked when read.

``metrics.json``  all figures of the test patient; `check_metrics` is its schema
``per_gene.csv``  the figures of every gene at every scale
``blocks.npz``    the sums of each spatial block, from which intervals are drawn

docs/metrics.md, "Files", says the same for people.
"""

from __future__ import annotations

import csv
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.metrics import ScaleScores
from virchow_st.metrics.bootstrap import BlockSums, Score
from virchow_st.run.panel import Panel
from virchow_st.runtime.atomic import write_json, written_whole
from virchow_st.types import SCALES_UM, Float64Array

METRICS_FORMAT = "virchow_st.metrics/1"
BLOCKS_FORMAT = "virchow_st.blocks/1"
RUN = "run"
"""The run itself among the models of ``blocks.npz``; the others are its baselines."""

PER_GENE = (
    "mean", "nonzero", "pcc", "pcc_ceiling", "pcc_ceiling_thinned", "pcc_shuffled", "pcc_shifted",
    "spearman", "ssim", "ssim_shuffled", "ssim_shifted", "ssim_all_zero", "d2_poisson",
    "d2_poisson_test_mean", "auprc", "auprc_prevalence", "auroc", "calibration",
    "morans_i_predicted", "morans_i_observed", "morans_i_residual",
)  # fmt: skip
"""Columns of ``per_gene.csv`` after gene_id, symbol and scale_um."""
INTERVALS: tuple[Score, ...] = ("pcc", "d2_poisson")
"""Figures with a 95 % interval, NAME_ci95."""
_AVERAGED = tuple(name for name in PER_GENE if name not in ("mean", "nonzero"))
SCORES = (
    "coverage", "n_bins", "n_genes_scored", *_AVERAGED, "pcc_fisher", "pcc_median", "pcc_pooled",
    "pcc_of_ceiling",
)  # fmt: skip
"""Numbers of one scale in ``metrics.json``, null where undefined."""

_HEAD: dict[str, type] = {
    "format": str, "test_patients": list, "n_patches": int, "n_genes": int, "loss": str,
    "decoder": str, "epoch": int, "encoder": dict, "bootstrap": dict, "scales": dict,
    "baselines": dict, "oracles": list, "differences": dict,
}  # fmt: skip


def check_metrics(content: Any) -> None:
    """Raise `ValueError` unless this is what ``metrics.json`` holds."""
    if not isinstance(content, dict):
        raise ValueError(f"expected an object; got {type(content).__name__}")
    if (found := content.get("format")) != METRICS_FORMAT:
        raise ValueError(f"expected format {METRICS_FORMAT!r}; got {found!r}")
    for name, kind in _HEAD.items():
        if not isinstance(content.get(name), kind):
            raise ValueError(f"{name}: expected {kind.__name__}; got {content.get(name)!r}")
    _check_scales("scales", content["scales"])
    for name, scales in content["baselines"].items():
        _check_scales(f"baselines.{name}", scales)
    if list(content["differences"]) != list(content["baselines"]):
        raise ValueError(f"differences: expected {', '.join(content['baselines'])}")
    for border, ratio in content.get("seams", {}).items():  # older runs have none
        if ratio is not None and not _is_number(ratio):
            raise ValueError(f"seams.{border}: expected a number or null; got {ratio!r}")
    for name, slide in content.get("slides", {}).items():
        _check_scales(f"slides.{name}", slide)


def _check_scales(where: str, scales: Any) -> None:
    names = [str(scale) for scale in SCALES_UM]
    if not isinstance(scales, dict) or sorted(scales) != sorted(names):
        raise ValueError(f"{where}: expected the scales {', '.join(names)}; got {scales!r:.80}")
    for scale, figures in scales.items():
        if not isinstance(figures, dict):
            raise ValueError(f"{where}.{scale}: expected dict; got {figures!r:.80}")
        for name in SCORES:
            value = figures.get(name, "nothing")
            if value is not None and not _is_number(value):
                raise ValueError(f"{where}.{scale}.{name}: expected a number or null; got {value}")
        for name in (f"{figure}_ci95" for figure in INTERVALS):
            value = figures.get(name, "nothing")
            if value is not None and not _is_interval(value):
                raise ValueError(
                    f"{where}.{scale}.{name}: expected [low, high] or null; got {value}"
                )


def _is_number(value: Any) -> bool:
    is_bool = isinstance(value, bool)  # which Python counts among the integers
    return isinstance(value, int | float) and not is_bool and math.isfinite(value)


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def write_metrics(run: Path, content: dict[str, Any]) -> None:
    """Write ``metrics.json`` after checking it against the schema."""
    check_metrics(content)
    write_json(run / "metrics.json", content)


def read_metrics(run: Path) -> dict[str, Any]:
    """``metrics.json``; raises `ConfigError` where it is missing, foreign or an older version's."""
    path = run / "metrics.json"
    try:
        content = json.loads(path.read_text("utf-8"))
        check_metrics(content)
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found; run `vst evaluate {run}` first") from None
    except (OSError, ValueError, AttributeError) as e:
        raise ConfigError(f"{path}: {e}; run `vst evaluate {run}` again") from None
    return cast("dict[str, Any]", content)


def write_per_gene(run: Path, panel: Panel, computed: Mapping[int, ScaleScores]) -> None:
    """Write ``per_gene.csv``: a line a gene and scale, an empty field where undefined."""
    with (
        written_whole(run / "per_gene.csv") as aside,
        open(aside, "w", newline="", encoding="utf-8") as f,
    ):
        _write_rows(f, panel, computed)


def _write_rows(f: TextIO, panel: Panel, computed: Mapping[int, ScaleScores]) -> None:
    rows = csv.writer(f, lineterminator="\n")
    rows.writerow(["gene_id", "symbol", "scale_um", *PER_GENE])
    for g, (gene, symbol) in enumerate(zip(panel.ids, panel.symbols, strict=True)):
        for scale, scores in computed.items():
            figures = (_text(getattr(scores, name), g) for name in PER_GENE)
            rows.writerow([gene, symbol, scale, *figures])


def _text(values: Float64Array, gene: int) -> str:
    return "" if np.isnan(values[gene]) else f"{values[gene]:.6g}"


@dataclass(frozen=True)
class GeneFigures:
    """A line of ``per_gene.csv``: the figures of `PER_GENE` by name, None where undefined."""

    gene_id: str
    symbol: str
    scale_um: int
    figures: dict[str, float | None]


def read_per_gene(run: Path) -> list[GeneFigures]:
    """``per_gene.csv`` in its order; raises `ConfigError` where it is missing or damaged."""
    path = run / "per_gene.csv"
    try:
        with open(path, newline="", encoding="utf-8") as f:
            rows = [
                GeneFigures(
                    row["gene_id"],
                    row["symbol"],
                    int(row["scale_um"]),
                    {name: _figure(row[name]) for name in PER_GENE},
                )
                for row in csv.DictReader(f)
            ]
        if not rows:
            raise ValueError("holds no gene")
        return rows
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found; run `vst evaluate {run}` first") from None
    except KeyError as e:
        raise ConfigError(
            f"{path}: column {e} is missing; run `vst evaluate {run}` again"
        ) from None
    except (OSError, ValueError, TypeError, csv.Error) as e:
        raise ConfigError(f"{path}: cannot be read ({e}); run `vst evaluate {run}` again") from None


def _figure(text: str | None) -> float | None:
    if text is None:
        raise ValueError("a line is too short")
    if text and not math.isfinite(float(text)):
        raise ValueError(f"expected numbers; got {text}")
    return float(text) if text else None


@dataclass(frozen=True)
class RunBlocks:
    """What ``blocks.npz`` holds.

    Attributes:
        gene_ids: (G,) of the panel.
        sums: of each model and scale in µm; ``"run"`` is the run, the others its baselines.
    """

    gene_ids: tuple[str, ...]
    sums: dict[str, dict[int, BlockSums]]


_SUMS = ("moments", "poisson_sums", "null_rate")


_UNREADABLE = (
    OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy raises for a file that is no such archive, or a damaged one."""


def write_blocks(run: Path, blocks: RunBlocks) -> None:
    """Write ``blocks.npz``: ``format``, ``gene_id``, and MODEL.SCALE.NAME for each array."""
    arrays: dict[str, Any] = {
        f"{model}.{scale}.{name}": getattr(sums, name)
        for model, scales in blocks.sums.items()
        for scale, sums in scales.items()
        for name in _SUMS
    }
    arrays |= {"format": np.array(BLOCKS_FORMAT), "gene_id": np.array(blocks.gene_ids)}
    with written_whole(run / "blocks.npz") as aside, open(aside, "wb") as f:
        np.savez_compressed(f, **arrays)


def read_blocks(run: Path) -> RunBlocks:
    """``blocks.npz``, nothing of it unpickled; `ConfigError` where it is missing or damaged."""
    path = run / "blocks.npz"
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as file:
            if (found := str(file["format"])) != BLOCKS_FORMAT:
                raise ValueError(f"expected format {BLOCKS_FORMAT!r}; got {found!r}")
            models = dict.fromkeys(n.split(".")[0] for n in file.files if n.count(".") == 2)
            sums = {
                model: {
                    scale: BlockSums(**{name: file[f"{model}.{scale}.{name}"] for name in _SUMS})
                    for scale in SCALES_UM
                }
                for model in models
            }
            return RunBlocks(tuple(str(gene) for gene in file["gene_id"]), sums)
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found; run `vst evaluate {run}` first") from None
    except _UNREADABLE as e:
        raise ConfigError(f"{path}: cannot be read ({e}); run `vst evaluate {run}` again") from None

"""The result tables of ``vst evaluate``: written completely or not at all, checked when read.

``metrics.json``  all scores of the test patient
``per_gene.csv``  the scores of every gene at every scale

docs/metrics.md, "Files", describes them. ``blocks.npz`` is in `virchow_st.run.blocks`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypedDict, cast

import numpy as np

from virchow_st.names import csv_text
from virchow_st.run.all_genes import AllGenesMetrics, GeneSetMetrics, score_columns
from virchow_st.run.panel import Gene, Panel
from virchow_st.run.regions import RegionMetrics
from virchow_st.runtime.atomic import write_json, written_table
from virchow_st.schema import Count, Length, MismatchError, Name, check, read_json, read_table
from virchow_st.types import SCALES_UM, Float64Array

if TYPE_CHECKING:
    from virchow_st.metrics import ScaleScores
    from virchow_st.metrics.bootstrap import Score

METRICS_FORMAT = "virchow_st.metrics/1"
METRICS, PER_GENE_FILE = "metrics.json", "per_gene.csv"


@dataclass(frozen=True)
class GeneScore:
    """One gene at one scale over the test slides; NaN where a score is not defined."""

    gene: Gene
    scale_um: int
    mean: float  # observed UMIs per bin of this scale
    nonzero: float  # share of bins with a UMI
    pcc: float
    pcc_ceiling: float
    pcc_ceiling_thinned: float
    pcc_shuffled: float
    pcc_shifted: float
    spearman: float
    ssim: float
    ssim_shuffled: float
    ssim_shifted: float
    ssim_all_zero: float
    d2_poisson: float
    d2_poisson_test_mean: float
    auprc: float
    auprc_prevalence: float
    auroc: float
    calibration: float
    morans_i_predicted: float
    morans_i_observed: float
    morans_i_residual: float
    pcc_partial: float = math.nan  # absent from results of versions before 0.2
    pcc_partial_ceiling: float = math.nan
    pcc_partial_shuffled: float = math.nan


PER_GENE = tuple(field.name for field in fields(GeneScore))[2:]
"""Columns of ``per_gene.csv`` after gene_id, symbol and scale_um."""
INTERVALS: tuple[Score, ...] = ("pcc", "d2_poisson")
"""Scores by which models are compared; each has a 95 % interval, NAME_ci95."""
WITH_INTERVAL: tuple[Score, ...] = (*INTERVALS, "pcc_partial")
"""Scores with a 95 % interval."""
_AVERAGED = tuple(name for name in PER_GENE if name not in ("mean", "nonzero"))
SCORES = (
    "coverage", "n_bins", "n_genes_scored", *_AVERAGED, "pcc_fisher", "pcc_median", "pcc_pooled",
    "pcc_of_ceiling",
)  # fmt: skip
"""Numbers of one scale in ``metrics.json``, null where undefined."""

LATER = ("pcc_partial", "pcc_partial_ceiling", "pcc_partial_shuffled", "pcc_partial_ci95")
"""What results of versions before 0.2 lack; it is read as undefined."""

_SCALES = [str(scale) for scale in SCALES_UM]
_Score = float | None
_Interval = tuple[float, float] | None


class _Encoder(TypedDict):
    name: Name
    weights: str
    licence: str


class _Bootstrap(TypedDict):
    block_um: Count
    n_blocks: Count
    draws: Count


class Exposure(TypedDict):
    """Exposure of the test slides, of runs with one."""

    mode: Literal["auto", "depth"]
    training_umis_per_bin: float
    slides: dict[str, dict[str, float]]
    with_depth: dict[str, dict[str, _Score]]


class Protocol(TypedDict):
    """What was chosen on what, and what intervals resample."""

    genes_chosen_on: str
    epoch_chosen_on: str
    settings_chosen_on: str
    exposure: Literal["auto", "depth", "none"]
    n_training_patients: Count
    n_test_patients: Count
    resampled: str
    n_resampled: Count


class _Gene(TypedDict):
    id: Name
    symbol: str


class _Metrics(TypedDict):
    format: Literal["virchow_st.metrics/1"]
    test_patients: Annotated[list[Name], Length(1)]
    n_patches: Count
    n_genes: Count
    not_measured: NotRequired[Annotated[list[_Gene], Length(1)]]
    loss: str
    decoder: str
    epoch: Count
    encoder: _Encoder
    bootstrap: _Bootstrap
    scales: dict[str, dict[str, Any]]
    baselines: dict[str, dict[str, dict[str, Any]]]
    oracles: list[str]
    differences: dict[str, dict[str, dict[str, dict[str, Any]]]]
    slides: NotRequired[dict[str, dict[str, dict[str, Any]]]]
    truth: NotRequired[dict[str, dict[str, Any]]]
    seams: NotRequired[dict[str, float | None]]
    seams_of_truth: NotRequired[dict[str, float | None]]
    all_genes: NotRequired[AllGenesMetrics]
    gene_sets: NotRequired[GeneSetMetrics]
    regions: NotRequired[RegionMetrics]
    left_out_bins: NotRequired[Count]
    exposure: NotRequired[Exposure]
    protocol: NotRequired[Protocol]


def check_metrics(content: Any) -> None:
    """Raise `ValueError` unless the value fits the schema of ``metrics.json``."""
    check(content, _Metrics)
    _check_scales("scales", content["scales"])
    for name, scales in content["baselines"].items():
        _check_scales(f"baselines.{name}", scales)
    if set(content["oracles"]) - set(content["baselines"]):
        raise MismatchError(f"oracles: expected some of {', '.join(content['baselines'])}")
    if list(content["differences"]) != list(content["baselines"]):
        raise MismatchError(f"differences: expected {', '.join(content['baselines'])}")
    for name, scales in content["differences"].items():
        _check_differences(f"differences.{name}", scales)
    for name, slide in content.get("slides", {}).items():
        _check_scales(f"slides.{name}", slide)
    for name, of_class in content.get("regions", {"classes": {}})["classes"].items():
        _check_scales(f"regions.classes.{name}", of_class["scales"])


def _check_scales(where: str, scales: dict[str, dict[str, Any]]) -> None:
    if sorted(scales) != sorted(_SCALES):
        raise MismatchError(
            f"{where}: expected the scales {', '.join(_SCALES)}; got {list(scales)}"
        )
    for scale, scores in scales.items():
        kinds = dict.fromkeys(SCORES, _Score)
        kinds |= dict.fromkeys((f"{name}_ci95" for name in WITH_INTERVAL), _Interval)
        if not any(name in scores for name in LATER):
            kinds = {name: kind for name, kind in kinds.items() if name not in LATER}
        _check_keys(f"{where}.{scale}", scores, kinds)


def _check_differences(where: str, scales: dict[str, dict[str, dict[str, Any]]]) -> None:
    if sorted(scales) != sorted(_SCALES):
        raise MismatchError(
            f"{where}: expected the scales {', '.join(_SCALES)}; got {list(scales)}"
        )
    for scale, scores in scales.items():
        for name in INTERVALS:
            kinds = {"difference": _Score, "ci95": _Interval, "p": _Score}
            _check_keys(f"{where}.{scale}.{name}", scores.get(name, {}), kinds)


def _check_keys(where: str, content: dict[str, Any], kinds: Mapping[str, Any]) -> None:
    for name, kind in kinds.items():
        if name not in content:
            raise MismatchError(f"{where}.{name} is missing")
        check(content[name], kind, f"{where}.{name}")


def write_metrics(run: Path, content: dict[str, Any]) -> None:
    """Write ``metrics.json`` after checking it against the schema."""
    check_metrics(content)
    write_json(run / METRICS, content)


def read_metrics(run: Path) -> dict[str, Any]:
    """Read ``metrics.json``; `ConfigError` if it is missing, damaged or of another format.

    The scores of `LATER` are None where the file has none.
    """
    remedy, missing = _again(run)
    found = read_json(run / METRICS, _Metrics, remedy, missing=missing, also=check_metrics)
    content = cast("dict[str, Any]", found)
    classes = content.get("regions", {"classes": {}})["classes"].values()
    models = [content["scales"], *content["baselines"].values()]
    models += [*content.get("slides", {}).values(), *(of_class["scales"] for of_class in classes)]
    for scales in models:
        for scores in scales.values():
            scores |= {name: scores.get(name) for name in LATER}
    return content


def _again(run: Path) -> tuple[str, str]:
    """What to do about a result file that is damaged, or missing."""
    return f"run `vst evaluate {run}` again", f"run `vst evaluate {run}` first"


def write_per_gene(run: Path, panel: Panel, computed: Mapping[int, ScaleScores]) -> None:
    """Write ``per_gene.csv``: one row per gene and scale; undefined scores are empty.

    A ``'`` is put before names that a spreadsheet would compute, see `csv_text`.
    """
    head = ["gene_id", "symbol", "scale_um", *PER_GENE]
    with written_table(run / PER_GENE_FILE, head) as write_row:
        for g, gene in enumerate(panel.genes):
            for scale, scores in computed.items():
                values = (_text(getattr(scores, name), g) for name in PER_GENE)
                write_row([csv_text(gene.id), csv_text(gene.symbol), scale, *values])


def _text(values: Float64Array, gene: int) -> str:
    return "" if np.isnan(values[gene]) else f"{values[gene]:.6g}"


def read_per_gene(run: Path) -> list[GeneScore]:
    """Rows of ``per_gene.csv`` in file order; `ConfigError` if it is missing or damaged."""
    columns = score_columns(PER_GENE)
    remedy, missing = _again(run)
    path = run / PER_GENE_FILE
    rows = read_table(path, columns, remedy, missing=missing, also=_check_rows, optional=LATER)
    return [
        GeneScore(
            Gene(row["gene_id"], row["symbol"]),
            row["scale_um"],
            **{name: row[name] for name in PER_GENE},
        )
        for row in rows
    ]


def _check_rows(rows: Any) -> None:
    """Every gene once, with a line for each scale."""
    if not rows:
        raise MismatchError("holds no gene")
    scales: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        scales.setdefault((row["gene_id"], row["symbol"]), []).append(row["scale_um"])
    for (gene, _), found in scales.items():
        if sorted(found) != sorted(SCALES_UM):
            raise MismatchError(
                f"gene {gene}: expected a line for each of {', '.join(_SCALES)} µm; got "
                f"{', '.join(map(str, found))}"
            )
    if len({gene for gene, _ in scales}) < len(scales):
        raise MismatchError("expected one symbol for each gene_id")

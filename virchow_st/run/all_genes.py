"""``all_genes.csv`` and ``factors.csv`` of a run with factors: scores and leading genes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict

import numpy as np

from virchow_st.names import csv_name, csv_text
from virchow_st.run.leading_genes import leading_genes
from virchow_st.run.panel import Gene, Panel
from virchow_st.runtime.atomic import written_table
from virchow_st.schema import Count, Length, MismatchError, read_table
from virchow_st.types import SCALES_UM, Float32Array, Float64Array

if TYPE_CHECKING:
    from virchow_st.metrics.factor_scores import AllGeneScores

ALL_GENES, FACTORS = "all_genes.csv", "factors.csv"
FIELDS = "fields"
"""Folder of the predicted factors of a run's test slides, a field for each."""
NULL_SCALES_UM = (8, 16)
"""Scales at which genes are tested against null predictions, µm."""
FDR = 0.05
"""False discovery rate at which a gene counts as predicted."""
N_LEADING = 10
"""Leading genes of a factor in ``factors.csv``."""


@dataclass(frozen=True)
class AllGenesTable:
    """Scores of all genes.

    Attributes:
        genes: The G genes.
        scores: Scores by scale in µm.
        q_value: (G,) by scale in µm, for `NULL_SCALES_UM`: smallest false discovery rate at which
            a gene counts as predicted; NaN for a gene with too few UMIs to be tested.
    """

    genes: Panel
    scores: dict[int, AllGeneScores]
    q_value: dict[int, Float64Array]

    def among(self, genes: Panel) -> AllGenesTable:
        """The table with a row for each of ``genes``; all values of a gene it lacks are NaN.

        Args:
            genes: Genes with those of the table among them, in the same order.
        """
        if len(genes) == len(self.genes):
            return self
        own = set(self.genes.ids)
        known = np.array([gene in own for gene in genes.ids])

        def spread(values: Float64Array) -> Float64Array:
            out = np.full((*values.shape[:-1], len(known)), np.nan)
            out[..., known] = values
            return out

        def of_scale(scores: AllGeneScores) -> AllGeneScores:
            values = {f.name: getattr(scores, f.name) for f in fields(scores)}
            arrays: dict[str, Any] = {
                name: spread(value)
                for name, value in values.items()
                if isinstance(value, np.ndarray)
            }
            return replace(scores, **arrays)

        return AllGenesTable(
            genes,
            {scale: of_scale(scores) for scale, scores in self.scores.items()},
            {scale: spread(q) for scale, q in self.q_value.items()},
        )


@dataclass(frozen=True)
class AllGenesRow:
    """One gene at one scale in ``all_genes.csv``; NaN where a score is not defined.

    All values of a gene are NaN if a test slide did not measure it.
    """

    gene: Gene
    scale_um: int
    mean: float  # observed UMIs per bin of this scale
    nonzero: float  # share of bins with a UMI
    pcc: float
    pcc_ceiling: float
    pcc_null: float  # mean over the null predictions
    d2_poisson: float
    calibration: float
    q_value: float


COLUMNS = tuple(AllGenesRow.__annotations__)[2:]
"""Columns of ``all_genes.csv`` after gene_id, symbol and scale_um."""


class DecileScores(TypedDict):
    """One of ten groups of genes by abundance."""

    umis_per_2um_bin: float | None
    n_genes_scored: int
    pcc: float | None
    pcc_ceiling: float | None
    pcc_of_ceiling: float | None
    d2_poisson: float | None


class ScaleMeans(TypedDict):
    """Means over the genes whose counts vary, at one scale."""

    n_bins: Count
    n_genes_scored: int
    pcc: float | None
    pcc_ceiling: float | None
    pcc_of_ceiling: float | None
    d2_poisson: float | None
    calibration: float | None


class AllGenesMetrics(TypedDict):
    """``all_genes`` of ``metrics.json``."""

    n_genes: Count
    n_not_measured: NotRequired[Count]
    n_factors: Count
    null_draws: Count
    fdr: float
    n_tested: dict[str, int]
    n_predicted: dict[str, int]
    scales: dict[str, ScaleMeans]
    deciles: dict[str, Annotated[list[DecileScores], Length(10, 10)]]


class GeneSetMetrics(TypedDict):
    """``gene_sets`` of ``metrics.json``."""

    n_sets: Count
    fdr: float
    n_tested: dict[str, int]
    n_predicted: dict[str, int]


def write_all_genes(run: Path, table: AllGenesTable) -> None:
    """Write ``all_genes.csv``: one row per gene and scale; undefined scores are empty."""
    head = ["gene_id", "symbol", "scale_um", *COLUMNS]
    with written_table(run / ALL_GENES, head) as write_row:
        texts = {scale: score_texts(table, scale) for scale in table.scores}
        for g, gene in enumerate(table.genes.genes):
            for scale, of_scale in texts.items():
                write_row([csv_text(gene.id), csv_text(gene.symbol), scale, *of_scale[g]])


def score_texts(table: AllGenesTable, scale: int) -> list[list[str]]:
    """The fields of `COLUMNS` of every gene at a scale; empty where a score is not defined."""
    scores = table.scores[scale]
    undefined = np.full(len(table.genes), np.nan)
    nulls = scores.pcc_null
    own = {
        "pcc_null": nulls.mean(0) if len(nulls) else undefined,
        "q_value": table.q_value.get(scale, undefined),
    }
    columns = [own.get(name, getattr(scores, name, undefined)) for name in COLUMNS]
    return [[_text(value) for value in values] for values in zip(*columns, strict=True)]


def _text(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"


def read_all_genes(run: Path) -> list[AllGenesRow]:
    """Rows of ``all_genes.csv`` in file order; `ConfigError` if it is missing or damaged."""
    columns = score_columns(COLUMNS)
    remedy = f"run `vst evaluate {run}` again"
    rows = read_table(run / ALL_GENES, columns, remedy, also=_check_rows)
    return [
        AllGenesRow(
            Gene(row["gene_id"], row["symbol"]),
            row["scale_um"],
            **{name: row[name] for name in COLUMNS},
        )
        for row in rows
    ]


def score_columns(scores: Iterable[str]) -> dict[str, Callable[[str], Any]]:
    """Parser of each column, by name, of a table with a row per gene and scale."""
    keys: dict[str, Callable[[str], Any]] = {
        "gene_id": csv_name,
        "symbol": csv_name,
        "scale_um": int,
    }
    return keys | dict.fromkeys(scores, _score)


def _score(text: str) -> float:
    if text and not np.isfinite(float(text)):
        raise MismatchError(f"expected numbers; got {text}")
    return float(text) if text else float("nan")


def _check_rows(rows: Any) -> None:
    """Every gene once at every scale, in the order of the scales."""
    if not rows or len(rows) % len(SCALES_UM):
        raise MismatchError(f"expected {len(SCALES_UM)} lines for each gene; got {len(rows)} lines")
    for i in range(0, len(rows), len(SCALES_UM)):
        group = rows[i : i + len(SCALES_UM)]
        if len({row["gene_id"] for row in group}) > 1 or tuple(
            row["scale_um"] for row in group
        ) != tuple(SCALES_UM):
            scales = ", ".join(map(str, SCALES_UM))
            raise MismatchError(f"gene {group[0]['gene_id']}: expected its lines for {scales} µm")
    if len({row["gene_id"] for row in rows}) * len(SCALES_UM) < len(rows):
        raise MismatchError("gene_id: expected every gene once")


def write_factors(run: Path, genes: Panel, loadings: Float32Array, umis: Float64Array) -> None:
    """Write ``factors.csv``: one row per factor with its leading genes.

    Args:
        run: Folder to write to.
        genes: The G genes.
        loadings: (G, K) share of each gene in a factor's UMIs.
        umis: (K,) predicted UMIs of each factor per 2 µm bin of the test slides.
    """
    leading = leading_genes(loadings, N_LEADING)
    head = ["factor", "umis_per_2um_bin", "leading_genes"]
    with written_table(run / FACTORS, head) as write_row:
        labels = genes.labels
        for k, places in enumerate(leading):
            names = " ".join(labels[g] for g in places)
            write_row([k + 1, f"{umis[k]:.6g}", csv_text(names)])

"""``regions.csv``: scores within classes of regions that a pathologist drew, at every scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from virchow_st.names import csv_text
from virchow_st.runtime.atomic import written_table
from virchow_st.schema import Count

REGIONS_FILE = "regions.csv"
_WITH_INTERVAL = ("pcc", "d2_poisson", "pcc_partial")
COLUMNS = (
    "coverage", "n_bins", "n_genes_scored", "pcc", "pcc_ci95_low", "pcc_ci95_high", "pcc_ceiling",
    "pcc_of_ceiling", "pcc_shuffled", "pcc_shifted", "pcc_partial", "pcc_partial_ci95_low",
    "pcc_partial_ci95_high", "pcc_partial_ceiling", "spearman", "ssim", "d2_poisson",
    "d2_poisson_ci95_low", "d2_poisson_ci95_high", "d2_poisson_test_mean", "auprc",
    "auprc_prevalence", "calibration", "morans_i_predicted", "morans_i_observed",
)  # fmt: skip
"""Columns of ``regions.csv`` after region, n_regions and scale_um; the averages are over genes."""


class RegionScoresOfClass(TypedDict):
    """One class of ``regions.classes`` of ``metrics.json``."""

    n_regions: Count
    tissue_bins: Count
    scales: dict[str, dict[str, Any]]


class RegionMetrics(TypedDict):
    """``regions`` of ``metrics.json``."""

    shared_bins: Count
    regions_without_bins: Count
    regions_without_class: Count
    classes: dict[str, RegionScoresOfClass]


def write_regions(run: Path, regions: RegionMetrics) -> None:
    """Write ``regions.csv``: a line for each class and scale; an empty field is undefined."""
    head = ["region", "n_regions", "scale_um", *COLUMNS]
    with written_table(run / REGIONS_FILE, head) as write_row:
        for name, of_class in regions["classes"].items():
            for scale, scores in of_class["scales"].items():
                values = _flat(scores)
                texts = (_text(values[column]) for column in COLUMNS)
                write_row([csv_text(name), of_class["n_regions"], scale, *texts])


def _flat(scores: dict[str, Any]) -> dict[str, Any]:
    """Scores with the ends of the intervals under names of their own."""
    ends: dict[str, float | None] = {}
    for name in _WITH_INTERVAL:
        low, high = scores[f"{name}_ci95"] or (None, None)
        ends |= {f"{name}_ci95_low": low, f"{name}_ci95_high": high}
    return scores | ends


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"

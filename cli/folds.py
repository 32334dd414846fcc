"""The table of a leave-one-out: means and spreads over its folds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from virchow_st_cli.console import Console

_SCALES = ("2", "4", "8", "16")

Scores = Mapping[str, Mapping[str, Any]]


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Figures of ``summary.json``, beside ceiling, nulls and the ridge baseline."""
    scales, ridge = summary["scales"], summary["baselines"]["ridge"]
    patients = list(summary["folds"])
    rows: list[tuple[str, list[str], str]] = [
        ("PCC", _spreads(scales, "pcc"), "bold cyan"),
        *((f"  {patient}", _of_fold(scales, "pcc", patient), "") for patient in patients),
        ("  share of ceiling", _spreads(scales, "pcc_of_ceiling"), ""),
        ("  null, shuffled", _spreads(scales, "pcc_shuffled"), "dim"),
        ("  ceiling", _spreads(scales, "pcc_ceiling"), "green"),
        ("  baseline, ridge", _spreads(ridge, "pcc"), "dim"),
        ("D²", _spreads(scales, "d2_poisson"), "bold cyan"),
        ("  baseline, ridge", _spreads(ridge, "d2_poisson"), "dim"),
        ("SSIM", _spreads(scales, "ssim"), "bold cyan"),
        ("  null, shuffled", _spreads(scales, "ssim_shuffled"), "dim"),
        ("  null, all 0", _spreads(scales, "ssim_all_zero"), "dim"),
        ("Level: 1 right", _spreads(scales, "calibration"), "bold cyan"),
    ]
    caption = (
        "Mean ± standard deviation over the patients, each tested by a run that has not seen it. "
        f"{summary['genes_in_all_folds']} genes are in the panels of all folds."
    )
    console.table(
        f"{len(patients)} folds: {summary['decoder']}, {summary['loss']}, on "
        f"{summary['encoder']['name']}",
        ["", *(f"{scale} µm" for scale in _SCALES)],
        [[label, *cells] for label, cells, _ in rows],
        caption=caption,
        styles={i: style for i, (*_, style) in enumerate(rows)},
    )


def _spreads(scales: Scores, figure: str) -> list[str]:
    cells = []
    for scale in _SCALES:
        mean, std = scales[scale][figure]["mean"], scales[scale][figure]["std"]
        cells.append("–" if mean is None else f"{mean:.3f}" + (f" ±{std:.3f}" if std else ""))
    return cells


def _of_fold(scales: Scores, figure: str, patient: str) -> list[str]:
    values = [scales[scale][figure]["folds"][patient] for scale in _SCALES]
    return ["–" if value is None else f"{value:.3f}" for value in values]

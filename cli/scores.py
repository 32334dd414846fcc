"""Tables of scores, as printed by ``vst evaluate``, ``vst train`` and ``vst demo``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from virchow_st.run.score_table import (
    ABUNDANCE_COLUMNS,
    NAMES,
    SCALES,
    Row,
    Runs,
    abundance_caption,
    abundance_rows,
    abundance_title,
    below_baselines,
    better_of,
    interval_text,
    region_caption,
    region_rows,
    score_rows,
    signed_text,
    table_caption,
    table_title,
)
from virchow_st_cli.console import Console

_STYLES = {
    "head": "bold", "main": "bold cyan", "run": "cyan", "detail": "", "null": "dim",
    "ceiling": "green", "baseline": "dim", "oracle": "dim",
}  # fmt: skip
_COLUMNS = ["", *(f"{scale} µm" for scale in SCALES)]
_FEW_PATIENTS = 3  # the caption says that there is no interval over so few

Scores = Mapping[str, Mapping[str, Any]]  # by scale, then by the score's name


def print_scores(console: Console, runs: Runs) -> None:
    """Print the scores of one or several runs at every scale, with ceiling, nulls and baselines.

    Args:
        console: Prints the table.
        runs: Contents of ``metrics.json`` by display name; all on the same test patches.
    """
    first = next(iter(runs.values()))
    _print_rows(console, table_title(first), score_rows(runs), table_caption(first))
    for line in below_baselines(runs):
        console.result(f"! {line}")
    for name, metrics in runs.items():
        if "seams" in metrics:
            of_truth = metrics.get("seams_of_truth")
            beside = f"; of the true rates {_seams(of_truth)}" if of_truth else ""
            console.result(
                f"seams of {name}: step of 2 µm bins across a border over one inside, 1 is none: "
                f"{_seams(metrics['seams'])}{beside}"
            )
        if "all_genes" in metrics:
            console.table(
                abundance_title(metrics),
                [name, *ABUNDANCE_COLUMNS],
                [list(row) for row in abundance_rows(metrics)],
                caption=abundance_caption(metrics),
                styles={0: "bold cyan"},
            )
        if "gene_sets" in metrics:
            found = metrics["gene_sets"]
            beyond = " and ".join(
                f"{n} of {found['n_tested'][scale]} at {scale} µm"
                for scale, n in found["n_predicted"].items()
            )
            console.result(
                f"gene sets of {name}, predicted beyond chance (false discovery rate "
                f"{found['fdr']:.0%}): {beyond}; their scores are in gene_sets.csv"
            )
        if "regions" in metrics:
            title = f"Within regions: {name}"
            _print_rows(console, title, region_rows(metrics), region_caption(metrics))


def _print_rows(console: Console, title: str, rows: Sequence[Row], caption: str) -> None:
    texts = [
        [
            ("  " if row.inset else "") + row.label,
            *("!" * (i in row.below) + cell for i, cell in enumerate(row.cells)),
        ]
        for row in rows
    ]
    rules = tuple(i - 1 for i, row in enumerate(rows) if i and row.kind == "head")
    styles = {i: _STYLES[row.kind] for i, row in enumerate(rows)}
    console.table(title, _COLUMNS, texts, rules, caption, styles=styles)


def print_comparison(console: Console, comparison: dict[str, Any], names: dict[str, str]) -> None:
    """Print, for every pair of runs A and B, the score differences A − B and their intervals.

    Args:
        console: Prints the tables.
        comparison: Result of `virchow_st.run.compare.compare_runs`.
        names: Display name of each run.
    """
    for pair in comparison["pairs"]:
        scales = pair["scales"]
        rows = []
        for score, name in NAMES.items():
            pairs = [scales[scale][score] for scale in SCALES]
            cells = [
                "–" if c["difference"] is None else signed_text(c["difference"]) for c in pairs
            ]
            rows.append([f"{name}, A − B", *cells])
            rows.append(["  95 % interval", *(interval_text(c["ci95"], digits=3) for c in pairs)])
            rows.append(["  better", *(better_of(c["ci95"]) for c in pairs)])
        console.table(
            f"A = {names[pair['a']]}, B = {names[pair['b']]}: is one better?",
            _COLUMNS,
            rows,
            (2,),
            "Intervals: bootstrap over the slide's blocks, the same for both.\n"
            "unclear: the interval contains 0.",
            styles={0: "cyan", 3: "cyan"},
        )


def short_names(runs: Sequence[Path]) -> dict[str, str]:
    """Display names of runs by path: the folders' names, or the paths if names repeat."""
    names = [run.resolve().name for run in runs]
    shown = names if len(set(names)) == len(names) else [str(run) for run in runs]
    return {str(run): name for run, name in zip(runs, shown, strict=True)}


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Print the scores of a leave-one-out run with ceiling, nulls and the ridge baseline.

    Args:
        console: Prints the table.
        summary: Content of ``summary.json``.
    """
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
        "Mean ± standard deviation over the patients, each tested by a run that has not seen it: "
        "a spread between patients and not an interval. "
        f"{summary['genes_in_all_folds']} genes are in the panels of all folds."
    )
    if len(patients) <= _FEW_PATIENTS:
        caption += f" {len(patients)} patients are too few for an interval over patients."
    console.table(
        f"{len(patients)} folds: {summary['decoder']}, {summary['loss']}, on "
        f"{summary['encoder']['name']}",
        _COLUMNS,
        [[label, *cells] for label, cells, _ in rows],
        caption=caption,
        styles={i: style for i, (*_, style) in enumerate(rows)},
    )


def _spreads(scales: Scores, score: str) -> list[str]:
    cells = []
    for scale in SCALES:
        mean, std = scales[scale][score]["mean"], scales[scale][score]["std"]
        cells.append("–" if mean is None else f"{mean:.3f}" + (f" ±{std:.3f}" if std else ""))
    return cells


def _of_fold(scales: Scores, score: str, patient: str) -> list[str]:
    values = [scales[scale][score]["folds"][patient] for scale in SCALES]
    return ["–" if value is None else f"{value:.3f}" for value in values]


def _seams(seams: dict[str, float | None]) -> str:
    return ", ".join(
        f"{border} {'–' if ratio is None else f'{ratio:.2f}'}" for border, ratio in seams.items()
    )

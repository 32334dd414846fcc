"""The table of figures that ``vst evaluate`` and ``vst demo`` print."""

from __future__ import annotations

from typing import Any

from virchow_st_cli.console import Console

_SCALES = ("2", "4", "8", "16")
_FIGURES = (
    ("PCC", "pcc"),
    ("  share of ceiling", "pcc_of_ceiling"),
    ("SSIM", "ssim"),
    ("deviance explained D²", "d2_poisson"),
    ("Σ predicted / Σ observed", "calibration"),
)
_CAPTION = (
    "PCC: Pearson's r per gene over the test slide's bins, averaged over genes; ceiling: what the "
    "true rates would reach, given Poisson noise;\nshuffled: predictions of other patches; gene "
    "mean: training means everywhere (a constant has PCC 0 and explains no deviance)."
)


def print_scores(console: Console, runs: dict[str, dict[str, Any]], title: str = "") -> None:
    """Figures of one or several runs at every scale, beside ceiling, null and baseline.

    Args:
        console: where to print.
        runs: ``metrics.json`` contents by the name to show; all of one test patient.
        title: of the table; the test patient and its size if left out.
    """
    first = next(iter(runs.values()))
    rows: list[list[str]] = []
    sections = []
    for label, key in _FIGURES:
        for name, metrics in runs.items():
            rows.append([f"{label}, {name}", *_cells(metrics["scales"], key)])
            if key == "ssim":
                rows.append([f"  shuffled, {name}", *_cells(metrics["scales"], "ssim_shuffled")])
            if key == "pcc":
                rows.append([f"  shuffled, {name}", *_cells(metrics["scales"], "pcc_shuffled")])
        if key == "pcc":
            rows.append(["  ceiling", *_cells(first["scales"], "pcc_ceiling")])
        if key == "ssim":
            rows.append(["  all zero", *_cells(first["scales"], "ssim_all_zero")])
        if key != "pcc_of_ceiling":
            rows.append(["  gene mean", *_cells(first["baselines"]["gene_mean"], key)])
        if key != "pcc":
            sections.append(len(rows) - 1)
    patients = ", ".join(first["test_patients"])
    title = title or (
        f"Test patient {patients}: {first['n_patches']} patches, {first['n_genes']} genes"
    )
    columns = ["", *(f"{scale} µm" for scale in _SCALES)]
    console.table(title, columns, rows, tuple(sections), _CAPTION)
    for name, metrics in runs.items():
        for scale in _below_baseline(metrics):
            console.warn(f"{name} explains less deviance than gene means at {scale} µm")


def _cells(scales: dict[str, Any], key: str) -> list[str]:
    values = [scales[scale][key] for scale in _SCALES]
    # Adding 0.0 after rounding turns a negative zero into zero.
    return ["–" if value is None else f"{round(value, 3) + 0.0:.3f}" for value in values]


def _below_baseline(metrics: dict[str, Any]) -> list[str]:
    baseline = metrics["baselines"]["gene_mean"]
    return [
        scale
        for scale in _SCALES
        if (metrics["scales"][scale]["d2_poisson"] or 0.0) < (baseline[scale]["d2_poisson"] or 0.0)
    ]

"""The tables of figures that ``vst evaluate`` and ``vst demo`` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from virchow_st_cli.console import Console

_SCALES = ("2", "4", "8", "16")
_BASELINES = {
    "ridge": "ridge on tokens",
    "nuclear_density": "nuclear density",
    "gene_mean": "gene mean",
    "total_umi": "total UMI",
}
_NAMES = {"pcc": "PCC", "d2_poisson": "D²"}
_FEW_BLOCKS = 8

Metrics = dict[str, Any]
Runs = Mapping[str, Metrics]


class _Rows:
    """Rows of the table as they are added, with their styles and the rules between sections."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []
        self.styles: dict[int, str] = {}
        self.rules: list[int] = []

    def head(self, text: str) -> None:
        """Begin a section."""
        if self.rows:
            self.rules.append(len(self.rows) - 1)
        self.add(text, [""] * len(_SCALES), "bold")

    def add(self, label: str, cells: list[str], style: str = "") -> None:
        """Add a row."""
        self.styles[len(self.rows)] = style
        self.rows.append([label, *cells])


def print_scores(console: Console, runs: Runs) -> None:
    """Figures of one or several runs at every scale, beside ceiling, nulls and baselines.

    Args:
        console: where to print.
        runs: ``metrics.json`` contents by the name to show; all of the same test patches.
    """
    first = next(iter(runs.values()))
    table = _Rows()
    _correlation(table, runs)
    table.head("D²: 1 best, 0 train means")
    for name, metrics in runs.items():
        table.add(name, _numbers(metrics["scales"], "d2_poisson"), "bold cyan")
        table.add("  95 % interval", _intervals(metrics["scales"], "d2_poisson"))
        table.add("  against test means", _numbers(metrics["scales"], "d2_poisson_test_mean"))
    _baselines(table, runs, "d2_poisson")
    table.head("AUPRC: 1 best")
    _each(table, runs, "auprc")
    table.add("null: share of such bins", _numbers(first["scales"], "auprc_prevalence"), "dim")
    _baselines(table, runs, "auprc")
    table.head("SSIM: 1 best")
    for name, metrics in runs.items():
        table.add(name, _numbers(metrics["scales"], "ssim"), "cyan")
        table.add("  null: other patches", _numbers(metrics["scales"], "ssim_shuffled"), "dim")
        table.add("  null: map shifted", _numbers(metrics["scales"], "ssim_shifted"), "dim")
    table.add("null: 0 everywhere", _numbers(first["scales"], "ssim_all_zero"), "dim")
    table.head("Level: 1 right")
    _each(table, runs, "calibration")
    table.add("baseline gene mean", _numbers(first["baselines"]["gene_mean"], "calibration"), "dim")
    table.head("Moran's I: as observed")
    table.add("observed", _numbers(first["scales"], "morans_i_observed"), "green")
    for name, metrics in runs.items():
        table.add(name, _numbers(metrics["scales"], "morans_i_predicted"), "cyan")
        table.add("  left unexplained", _numbers(metrics["scales"], "morans_i_residual"))
    columns = ["", *(f"{scale} µm" for scale in _SCALES)]
    console.table(
        _title(first), columns, table.rows, tuple(table.rules), _caption(first), styles=table.styles
    )
    for line in _below_baselines(runs):
        console.result(line)


def _correlation(table: _Rows, runs: Runs) -> None:
    first = next(iter(runs.values()))
    table.head("PCC: 1 best, 0 nothing")
    for name, metrics in runs.items():
        scales = metrics["scales"]
        table.add(name, _numbers(scales, "pcc"), "bold cyan")
        table.add("  95 % interval", _intervals(scales, "pcc"))
        table.add("  share of the ceiling", _percents(scales, "pcc_of_ceiling"))
        table.add("  as ranks, Spearman's ρ", _numbers(scales, "spearman"))
        for slide, of_slide in metrics.get("slides", {}).items():
            table.add(f"  on {slide}", _numbers(of_slide, "pcc"))
        table.add("  null: other patches", _numbers(scales, "pcc_shuffled"), "dim")
        table.add("  null: map shifted", _numbers(scales, "pcc_shifted"), "dim")
        if "truth" in metrics:
            table.add("  with the true rate", _numbers(metrics["truth"], "pcc_with_truth"))
    table.add("ceiling, given the noise", _numbers(first["scales"], "pcc_ceiling"), "green")
    if "truth" in first:
        table.add("  the true rate itself", _numbers(first["truth"], "pcc_of_truth"), "green")
    _baselines(table, runs, "pcc")


def _each(table: _Rows, runs: Runs, figure: str) -> None:
    for name, metrics in runs.items():
        table.add(name, _numbers(metrics["scales"], figure), "cyan")


def _baselines(table: _Rows, runs: Runs, figure: str) -> None:
    """Rows of the baselines, an exclamation mark where a run is below one that is no oracle."""
    first = next(iter(runs.values()))
    for key, label in _BASELINES.items():
        cells = _numbers(first["baselines"][key], figure)
        if key in first["oracles"]:
            table.add(f"oracle   {label}", cells, "dim")
            continue
        for i, scale in enumerate(_SCALES):
            if any(_is_below(metrics, key, scale, figure) for metrics in runs.values()):
                cells[i] = "!" + cells[i]
        table.add(f"baseline {label}", cells, "dim")


def _is_below(metrics: Metrics, baseline: str, scale: str, figure: str) -> bool:
    # To the last digit shown, as gene means differ from 0 by rounding.
    ours, theirs = metrics["scales"][scale][figure], metrics["baselines"][baseline][scale][figure]
    return ours is not None and theirs is not None and round(ours, 3) < round(theirs, 3)


def _below_baselines(runs: Runs) -> list[str]:
    """A line for each run, figure and baseline that is better somewhere."""
    lines = []
    for name, metrics in runs.items():
        for figure in _NAMES:
            for key, label in _BASELINES.items():
                below = [s for s in _SCALES if _is_below(metrics, key, s, figure)]
                if below and key not in metrics["oracles"]:
                    by = ", ".join(_by_how_much(metrics, key, s, figure) for s in below)
                    lines.append(f"! {name} is below {label} in {_NAMES[figure]}: {by}")
    return lines


def _by_how_much(metrics: Metrics, baseline: str, scale: str, figure: str) -> str:
    paired = metrics["differences"][baseline][scale][figure]
    unclear = "" if _better(paired["ci95"]) == "B" else " (unclear)"
    return f"{_signed(paired['difference'])} at {scale} µm{unclear}"


def print_comparison(console: Console, comparison: dict[str, Any], names: dict[str, str]) -> None:
    """Every pair of runs: figures of A less those of B, and whether that is clear of 0.

    Args:
        console: where to print.
        comparison: of `virchow_st.compare.compare_runs`.
        names: what to call each run.
    """
    for pair in comparison["pairs"]:
        scales = pair["scales"]
        rows = []
        for figure in ("pcc", "d2_poisson"):
            came = [scales[scale][figure] for scale in _SCALES]
            cells = ["–" if c["difference"] is None else _signed(c["difference"]) for c in came]
            rows.append([f"{_NAMES[figure]}, A − B", *cells])
            rows.append(["  95 % interval", *(_interval(c["ci95"], digits=3) for c in came)])
            rows.append(["  better", *(_better(c["ci95"]) for c in came)])
        console.table(
            f"A = {names[pair['a']]}, B = {names[pair['b']]}: is one better?",
            ["", *(f"{scale} µm" for scale in _SCALES)],
            rows,
            (2,),
            "Both on the same drawn blocks of the slide; unclear: the interval holds 0.",
            styles={0: "cyan", 3: "cyan"},
        )


def short_names(runs: Sequence[Path]) -> dict[str, str]:
    """What to call runs in a table, by path: their folders' names, or the paths if those repeat."""
    names = [run.resolve().name for run in runs]
    shown = names if len(set(names)) == len(names) else [str(run) for run in runs]
    return {str(run): name for run, name in zip(runs, shown, strict=True)}


def _better(ci95: list[float] | None) -> str:
    if ci95 is None or ci95[0] <= 0 <= ci95[1]:
        return "unclear"
    return "A" if ci95[0] > 0 else "B"


def _title(metrics: Metrics) -> str:
    patients = ", ".join(metrics["test_patients"])
    return f"Test patient {patients}: {metrics['n_patches']} patches, {metrics['n_genes']} genes"


def _caption(metrics: Metrics) -> str:
    bootstrap = metrics["bootstrap"]
    n_blocks, um = bootstrap["n_blocks"], bootstrap["block_um"]
    rough = "; so few make them rough" if n_blocks < _FEW_BLOCKS else ""
    return (
        "PCC: Pearson's r of prediction and counts over the test slide's bins, averaged\n"
        "over genes. Counts carry Poisson noise, so nothing can pass the ceiling. A good\n"
        "model is near it and clear of the nulls (its own map laid elsewhere) and of the\n"
        "baselines (no decoder, same training patches). The oracle is no model: it reads\n"
        "the test counts. D²: share of the Poisson deviance explained. AUPRC: finding the\n"
        "bins with any UMI. SSIM: likeness of pictures; read it beside its nulls. Level:\n"
        "Σ predicted / Σ observed. Moran's I: likeness of neighbours; unexplained, 0 is\n"
        "best. !: a run is below this baseline. 95 % intervals: "
        f"{bootstrap['draws']} draws of\n{n_blocks} blocks of {um} µm{rough}."
    )


def _numbers(scales: Metrics, figure: str) -> list[str]:
    values = [scales[scale][figure] for scale in _SCALES]
    # Adding 0.0 after rounding turns a negative zero into zero.
    return ["–" if value is None else f"{round(value, 3) + 0.0:.3f}" for value in values]


def _percents(scales: Metrics, figure: str) -> list[str]:
    values = [scales[scale][figure] for scale in _SCALES]
    return ["–" if value is None else f"{value:.0%}" for value in values]


def _intervals(scales: Metrics, figure: str) -> list[str]:
    return [_interval(scales[scale][f"{figure}_ci95"]) for scale in _SCALES]


def _interval(ci95: list[float] | None, digits: int = 2) -> str:
    if ci95 is None:
        return "–"
    low, high = (round(x, digits) + 0.0 for x in ci95)
    return f"{low:.{digits}f}..{high:.{digits}f}"


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"

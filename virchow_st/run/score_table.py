"""The table of scores: runs beside ceilings, nulls and baselines, as rows of text.

``vst evaluate`` prints these rows and ``vst report`` writes them as HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from virchow_st.types import BIN_UM

SCALES = ("2", "4", "8", "16")
"""The columns: side of the bins in µm, as in ``metrics.json``."""
NAMES = {"pcc": "PCC", "d2_poisson": "D²"}
"""Scores with confidence intervals, by which runs are compared, and their labels."""
Baseline = Literal["gene_mean", "nuclear_density", "ridge", "total_umi"]
BASELINES: dict[Baseline, str] = {
    "gene_mean": "gene mean",
    "nuclear_density": "nuclear density",
    "ridge": "ridge on tokens",
    "total_umi": "total UMI",
}
"""Baselines in the order of the result files, and their labels."""
_BASELINES: tuple[Baseline, ...] = ("ridge", "nuclear_density", "gene_mean", "total_umi")
"""Baselines in the order of the table, the one that reads the test counts last."""
_N_NAMED = 5  # genes that were not measured
_FEW_BLOCKS = 8  # with fewer, the caption calls the intervals rough

Metrics = dict[str, Any]
Runs = Mapping[str, Metrics]
Kind = Literal["head", "main", "run", "detail", "null", "ceiling", "baseline", "oracle"]


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        label: heading of the row.
        cells: one text per scale; "–" if undefined, empty in headings.
        kind: ``head``, heading of a section; ``main``, a run's main score (PCC or D²); ``run``,
            another score of a run; ``detail``, more about the score above; ``null``, the score
            without spatial skill; ``ceiling``, the upper bound or the observed value; ``baseline``,
            the score reached without a decoder; ``oracle``, a baseline that reads the test counts.
        inset: whether the row belongs to the one above.
        below: indices of the scales at which a run scores below this baseline.
    """

    label: str
    cells: tuple[str, ...]
    kind: Kind
    inset: bool = False
    below: frozenset[int] = frozenset()


def score_rows(runs: Runs) -> list[Row]:
    """Rows with the scores of one or several runs at every scale.

    Args:
        runs: name of a run → content of its ``metrics.json``; all of the same test patches.
    """
    first = next(iter(runs.values()))
    rows = [*_correlation(runs), *_beyond_cellularity(runs), _head("D²: 1 best, 0 train means")]
    for name, metrics in runs.items():
        scales = metrics["scales"]
        rows.append(Row(name, _numbers(scales, "d2_poisson"), "main"))
        rows.append(_detail("95 % interval", _intervals(scales, "d2_poisson")))
        rows.append(_detail("against test means", _numbers(scales, "d2_poisson_test_mean")))
        rows += _with_depth(metrics, "d2_poisson")
    rows += [*_baselines(runs, "d2_poisson"), _head("AUPRC: 1 best"), *_each(runs, "auprc")]
    rows.append(
        Row("null: share of such bins", _numbers(first["scales"], "auprc_prevalence"), "null")
    )
    rows += [*_baselines(runs, "auprc"), _head("SSIM: 1 best")]
    for name, metrics in runs.items():
        scales = metrics["scales"]
        rows.append(Row(name, _numbers(scales, "ssim"), "run"))
        rows += _nulls(scales, "ssim")
    rows.append(Row("null: 0 everywhere", _numbers(first["scales"], "ssim_all_zero"), "null"))
    rows.append(_head("Level: 1 right"))
    for name, metrics in runs.items():
        rows.append(Row(name, _numbers(metrics["scales"], "calibration"), "run"))
        rows += _with_depth(metrics, "calibration")
    gene_mean = first["baselines"]["gene_mean"]
    rows.append(Row("baseline gene mean", _numbers(gene_mean, "calibration"), "baseline"))
    rows.append(_head("Moran's I: as observed"))
    rows.append(Row("observed", _numbers(first["scales"], "morans_i_observed"), "ceiling"))
    for name, metrics in runs.items():
        scales = metrics["scales"]
        rows.append(Row(name, _numbers(scales, "morans_i_predicted"), "run"))
        rows.append(_detail("left unexplained", _numbers(scales, "morans_i_residual")))
    return rows


def table_title(metrics: Metrics) -> str:
    """Heading of the table: test patients, numbers of patches and genes, and what was left out."""
    patients = ", ".join(metrics["test_patients"])
    n_left_out = metrics.get("left_out_bins", 0)
    without = f", {n_left_out} bins left out" if n_left_out else ""
    absent = [gene["symbol"] or gene["id"] for gene in metrics.get("not_measured", ())]
    if absent:
        more = f" and {len(absent) - _N_NAMED} more" if len(absent) > _N_NAMED else ""
        without += f" (not measured there: {', '.join(absent[:_N_NAMED])}{more})"
    return (
        f"Test patient {patients}: {metrics['n_patches']} patches, {metrics['n_genes']} genes"
        f"{without}"
    )


def table_caption(metrics: Metrics) -> str:
    """Explanation of the rows, in lines of less than 80 characters."""
    bootstrap = metrics["bootstrap"]
    n_blocks, um = bootstrap["n_blocks"], bootstrap["block_um"]
    rough = "; so few make them rough" if n_blocks < _FEW_BLOCKS else ""
    return (
        "PCC: Pearson's r of prediction and counts over the test slide's bins, averaged\n"
        "over genes. Counts carry Poisson noise, so nothing can pass the ceiling. A good\n"
        "model is near it and clear of the nulls (its own map laid elsewhere) and of the\n"
        "baselines (no decoder, same training patches). The oracle is no model: it reads\n"
        "the test counts. Beyond cellularity: PCC given the bin's UMIs of other genes and\n"
        "the density of nuclei; 0 for a model that only knows where cells are. D²: share\n"
        "of the Poisson deviance explained. AUPRC: finding the bins with any UMI. SSIM:\n"
        "likeness of pictures; read it beside its nulls. Level: Σ predicted / Σ observed.\n"
        "Moran's I: likeness of neighbours; unexplained, 0 is best. !: a run is below\n"
        f"this baseline. 95 % intervals: {bootstrap['draws']} draws of\n"
        f"{n_blocks} blocks of {um} µm{rough}.\n"
        "None is over patients: they say nothing about another one."
    )


ABUNDANCE_COLUMNS = ("UMIs per 2 µm bin", "genes", "PCC", "ceiling", "share of it", "D²")
"""Columns of `abundance_rows` after the label."""


def abundance_rows(metrics: Metrics, scale: str = "8") -> list[tuple[str, ...]]:
    """Scores of all genes at one scale in ten groups by abundance, the most abundant first.

    Args:
        metrics: ``metrics.json`` content with ``all_genes``.
        scale: Side of the bins, µm.

    Returns:
        Rows of a label and `ABUNDANCE_COLUMNS`; the first is that of all genes together.
    """
    found = metrics["all_genes"]
    every = found["scales"][scale]
    groups = found["deciles"][scale][::-1]
    labels = ["tenth 1, most", *(f"tenth {i}" for i in range(2, 10)), "tenth 10, least"]
    rows = [("all genes", "", *_of_group(every))]
    for label, group in zip(labels, groups, strict=True):
        umis = group["umis_per_2um_bin"]
        rows.append((label, "–" if umis is None else f"{umis:.1e}", *_of_group(group)))
    return rows


def _of_group(group: Metrics) -> tuple[str, ...]:
    share = group["pcc_of_ceiling"]
    return (
        str(group["n_genes_scored"]),
        _number(group["pcc"]),
        _number(group["pcc_ceiling"]),
        "–" if share is None else f"{share:.0%}",
        _number(group["d2_poisson"]),
    )


def abundance_title(metrics: Metrics, scale: str = "8") -> str:
    """Title of the table of `abundance_rows`."""
    found = metrics["all_genes"]
    return f"All {found['n_genes']} genes, as {found['n_factors']} factors, at {scale} µm"


def abundance_caption(metrics: Metrics) -> str:
    """How many genes are predicted beyond chance, and how to read the table, in short lines."""
    found = metrics["all_genes"]
    predicted = " and ".join(
        f"{n} of {found['n_tested'][scale]} at {scale} µm"
        for scale, n in found["n_predicted"].items()
    )
    return (
        f"Predicted beyond chance: {predicted}\n(false discovery rate {found['fdr']:.0%}, "
        f"against {found['null_draws']} null predictions made for other patches). Tenths are by\n"
        "UMIs on the test slide. PCC, ceiling: means over genes; D²: mean of all genes,\n"
        "median of a tenth."
    )


def region_rows(metrics: Metrics) -> list[Row]:
    """Scores within each class of regions at every scale.

    Args:
        metrics: ``metrics.json`` content with ``regions``.
    """
    rows = []
    for name, of_class in metrics["regions"]["classes"].items():
        n, n_bins = of_class["n_regions"], of_class["tissue_bins"]
        regions = f"{n:,} region{'s' * (n != 1)}, " if n else ""
        rows.append(_head(f"{name}: {regions}{n_bins * BIN_UM**2 / 1e6:.2g} mm²"))
        scales = of_class["scales"]
        rows.append(Row("PCC", _numbers(scales, "pcc"), "main"))
        rows.append(_detail("95 % interval", _intervals(scales, "pcc")))
        rows.append(Row("ceiling", _numbers(scales, "pcc_ceiling"), "ceiling", inset=True))
        rows.append(_detail("share of the ceiling", _percents(scales, "pcc_of_ceiling")))
        rows += _nulls(scales, "pcc")
        rows.append(Row("D²", _numbers(scales, "d2_poisson"), "main"))
        rows.append(_detail("95 % interval", _intervals(scales, "d2_poisson")))
        rows.append(_detail("against its own means", _numbers(scales, "d2_poisson_test_mean")))
        rows.append(Row("Level: 1 right", _numbers(scales, "calibration"), "run"))
    return rows


def region_caption(metrics: Metrics) -> str:
    """How to read the table of `region_rows`, in short lines."""
    shared = metrics["regions"]["shared_bins"]
    overlap = f";\n{shared:,} bins lie in several" if shared else ""
    return (
        "Each class is scored on its own tissue, with its own ceiling and nulls: what tells\n"
        "classes apart is worth nothing here, so that PCC is usually below the slide's. A\n"
        f"bin in several regions belongs to the smallest{overlap}. elsewhere: tissue of the\n"
        f"test patches outside of all. Intervals: blocks of {metrics['bootstrap']['block_um']} µm "
        "that hold the class."
    )


def below_baselines(runs: Runs) -> list[str]:
    """Warnings: one line per run, score and baseline, if the baseline is better at some scale."""
    lines = []
    for name, metrics in runs.items():
        for score in NAMES:
            for key, label in ((name, BASELINES[name]) for name in _BASELINES):
                below = [s for s in SCALES if _is_below(metrics, key, s, score)]
                if below and key not in metrics["oracles"]:
                    by = ", ".join(_by_how_much(metrics, key, s, score) for s in below)
                    lines.append(f"{name} is below {label} in {NAMES[score]}: {by}")
    return lines


def better_of(ci95: list[float] | None) -> str:
    """Which of A and B is better, by the 95 % interval of A − B.

    Example:
        >>> better_of([0.01, 0.05]), better_of([-0.02, 0.03])
        ('A', 'unclear')
    """
    if ci95 is None or ci95[0] <= 0 <= ci95[1]:
        return "unclear"
    return "A" if ci95[0] > 0 else "B"


def interval_text(ci95: list[float] | None, digits: int = 2) -> str:
    """Format an interval as ``low..high``; a dash if there is none.

    Example:
        >>> interval_text([0.123, 0.456])
        '0.12..0.46'
    """
    if ci95 is None:
        return "–"
    low, high = (round(x, digits) + 0.0 for x in ci95)
    return f"{low:.{digits}f}..{high:.{digits}f}"


def signed_text(value: float) -> str:
    """Format a difference with sign and three digits.

    Example:
        >>> signed_text(0.0123)
        '+0.012'
    """
    return f"{round(value, 3) + 0.0:+.3f}"


def _correlation(runs: Runs) -> list[Row]:
    first = next(iter(runs.values()))
    rows = [_head("PCC: 1 best, 0 nothing")]
    for name, metrics in runs.items():
        scales = metrics["scales"]
        rows.append(Row(name, _numbers(scales, "pcc"), "main"))
        rows.append(_detail("95 % interval", _intervals(scales, "pcc")))
        rows.append(_detail("share of the ceiling", _percents(scales, "pcc_of_ceiling")))
        rows.append(_detail("as ranks, Spearman's ρ", _numbers(scales, "spearman")))
        for slide, of_slide in metrics.get("slides", {}).items():
            rows.append(_detail(f"on {slide}", _numbers(of_slide, "pcc")))
        rows += _nulls(scales, "pcc")
        if "truth" in metrics:
            rows.append(_detail("with the true rate", _numbers(metrics["truth"], "pcc_with_truth")))
    ceiling = _numbers(first["scales"], "pcc_ceiling")
    rows.append(Row("ceiling, given the noise", ceiling, "ceiling"))
    if "truth" in first:
        of_truth = _numbers(first["truth"], "pcc_of_truth")
        rows.append(Row("the true rate itself", of_truth, "ceiling", inset=True))
        if all("pcc_of_shown" in first["truth"][scale] for scale in SCALES):  # since 0.2
            shown = _numbers(first["truth"], "pcc_of_shown")
            rows.append(Row("what H&E shows of it", shown, "ceiling", inset=True))
    return rows + _baselines(runs, "pcc")


def _beyond_cellularity(runs: Runs) -> list[Row]:
    """Rows of the partial correlation; none if no run has it, as results before version 0.2."""
    if all(m["scales"][scale]["pcc_partial"] is None for m in runs.values() for scale in SCALES):
        return []
    rows = [_head("PCC beyond cellularity")]
    for name, metrics in runs.items():
        scales = metrics["scales"]
        rows.append(Row(name, _numbers(scales, "pcc_partial"), "run"))
        rows.append(_detail("95 % interval", _intervals(scales, "pcc_partial")))
        rows.append(
            Row("null: other patches", _numbers(scales, "pcc_partial_shuffled"), "null", inset=True)
        )
    first = next(iter(runs.values()))
    ceiling = _numbers(first["scales"], "pcc_partial_ceiling")
    rows.append(Row("ceiling, given the noise", ceiling, "ceiling"))
    return rows + _baselines(runs, "pcc_partial")


def _with_depth(metrics: Metrics, score: str) -> list[Row]:
    """A row of the score at the test slides' own depth; none for a run without an exposure."""
    if "exposure" not in metrics:
        return []
    return [_detail("at the slide's depth", _numbers(metrics["exposure"]["with_depth"], score))]


def _head(text: str) -> Row:
    return Row(text, ("",) * len(SCALES), "head")


def _detail(label: str, cells: tuple[str, ...]) -> Row:
    return Row(label, cells, "detail", inset=True)


def _nulls(scales: Metrics, score: str) -> list[Row]:
    nulls = {"other patches": "shuffled", "map shifted": "shifted"}
    return [
        Row(f"null: {label}", _numbers(scales, f"{score}_{name}"), "null", inset=True)
        for label, name in nulls.items()
    ]


def _each(runs: Runs, score: str) -> list[Row]:
    return [Row(name, _numbers(m["scales"], score), "run") for name, m in runs.items()]


def _baselines(runs: Runs, score: str) -> list[Row]:
    """Rows of the baselines; those other than oracles are marked where a run is below them."""
    first = next(iter(runs.values()))
    rows = []
    for key, label in ((name, BASELINES[name]) for name in _BASELINES):
        cells = _numbers(first["baselines"][key], score)
        if key in first["oracles"]:
            rows.append(Row(f"oracle   {label}", cells, "oracle"))
            continue
        below = frozenset(
            i
            for i, scale in enumerate(SCALES)
            if any(_is_below(metrics, key, scale, score) for metrics in runs.values())
        )
        rows.append(Row(f"baseline {label}", cells, "baseline", below=below))
    return rows


def _is_below(metrics: Metrics, baseline: str, scale: str, score: str) -> bool:
    # Compare the digits that are shown, as the gene mean's D² differs from 0 by rounding.
    ours, theirs = metrics["scales"][scale][score], metrics["baselines"][baseline][scale][score]
    return ours is not None and theirs is not None and round(ours, 3) < round(theirs, 3)


def _by_how_much(metrics: Metrics, baseline: str, scale: str, score: str) -> str:
    paired = metrics["differences"][baseline][scale][score]
    unclear = "" if better_of(paired["ci95"]) == "B" else " (unclear)"
    return f"{signed_text(paired['difference'])} at {scale} µm{unclear}"


def _numbers(scales: Metrics, score: str) -> tuple[str, ...]:
    return tuple(_number(scales[scale][score]) for scale in SCALES)


def _number(value: float | None) -> str:
    # Adding 0.0 after rounding turns a negative zero into zero.
    return "–" if value is None else f"{round(value, 3) + 0.0:.3f}"


def _percents(scales: Metrics, score: str) -> tuple[str, ...]:
    values = [scales[scale][score] for scale in SCALES]
    return tuple("–" if value is None else f"{value:.0%}" for value in values)


def _intervals(scales: Metrics, score: str) -> tuple[str, ...]:
    return tuple(interval_text(scales[scale][f"{score}_ci95"]) for scale in SCALES)

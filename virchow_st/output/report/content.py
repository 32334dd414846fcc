"""What the page tells of a run, from its result files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from virchow_st.run.evaluated import RunResults
from virchow_st.run.panel import Gene

COLUMNS = (
    ("Counts", (("mean", "UMIs per bin"), ("nonzero", "bins > 0"))),
    ("PCC", (("pcc", "run"), ("pcc_ceiling", "ceiling"), ("pcc_shuffled", "null"))),
    ("Spearman", (("spearman", "ρ"),)),
    ("SSIM", (("ssim", "run"), ("ssim_shuffled", "null"), ("ssim_all_zero", "zeros"))),
    ("Deviance", (("d2_poisson", "D²"),)),
    ("AUPRC", (("auprc", "run"), ("auprc_prevalence", "null"))),
    ("Level", (("calibration", "pred./obs."),)),
    ("Moran's I", (("morans_i_observed", "observed"), ("morans_i_predicted", "run"))),
)  # fmt: skip
"""Columns of the table of genes, in groups: names of ``per_gene.csv`` and what to call them."""
SUBORDINATE = ("pcc_ceiling", "pcc_shuffled", "ssim_shuffled", "ssim_all_zero",
                "auprc_prevalence", "morans_i_observed")  # fmt: skip
"""Columns that the figures beside them are read against."""


def run_label(results: RunResults) -> str:
    """What the run is called in its table."""
    return f"{results.metrics['decoder']}, {results.metrics['loss']}"


def gene_table_data(results: RunResults, order: Sequence[Gene]) -> dict[str, Any]:
    """What the page's scripts fill the table and the list of genes with.

    Returns:
        ``{"columns": names, "first": names that begin a group, "subordinate": names, "genes":
        [{"id", "label", "figures": {"8": [numbers or null]}}]}``, genes in the order given.
    """
    names = [name for _, columns in COLUMNS for name, _ in columns]
    first = [columns[0][0] for _, columns in COLUMNS]
    figures: dict[str, dict[str, list[float | None]]] = {}
    for score in results.scores:
        by_scale = figures.setdefault(score.gene.id, {})
        values = (getattr(score, name) for name in names)
        by_scale[str(score.scale_um)] = [None if math.isnan(v) else v for v in values]
    genes = [{"id": g.id, "label": results.labels[g.id], "figures": figures[g.id]} for g in order]
    return {"columns": names, "first": first, "subordinate": list(SUBORDINATE), "genes": genes}

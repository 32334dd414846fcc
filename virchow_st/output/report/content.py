"""What the page tells of a run, from its result files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virchow_st.config import TrainConfig, from_toml
from virchow_st.errors import ConfigError
from virchow_st.output.figures.results import Gene
from virchow_st.run.results import GeneFigures, read_metrics, read_per_gene
from virchow_st.run.split import Split

RANKING_UM = 8

COLUMNS = (
    ("Counts", (("mean", "UMIs a bin"), ("nonzero", "bins > 0"))),
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


@dataclass(frozen=True)
class RunResults:
    """What the page tells of a run, read and checked."""

    path: Path
    name: str
    config: TrainConfig
    metrics: dict[str, Any]
    per_gene: list[GeneFigures]
    n_epochs: int
    split: dict[str, Any]

    @property
    def panel(self) -> list[Gene]:
        """Genes in the order of the panel."""
        return list(dict.fromkeys(Gene(row.gene_id, row.symbol) for row in self.per_gene))

    @property
    def label(self) -> str:
        """What the run is called in its table."""
        return f"{self.metrics['decoder']}, {self.metrics['loss']}"


def read_results(run: Path) -> RunResults:
    """Read a run; raises `ConfigError` for a file that is missing or damaged."""
    if not run.is_dir():
        raise ConfigError(f"{run}: no such folder; give the folder that vst train wrote")
    metrics = read_metrics(run)
    history = run / "history.jsonl"
    try:
        n_epochs = len(history.read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{history}: cannot be read ({e}); train anew") from None
    config = from_toml(TrainConfig, run / "config.toml")
    n_stores = len(Split.read(run / "split.json").slides)  # which compares its hash
    if len(config.stores) != n_stores:
        raise ConfigError(
            f"{run / 'config.toml'}: expected the {n_stores} stores of split.json; got "
            f"{len(config.stores)}; put the run's own file back"
        )
    return RunResults(
        path=run,
        name=run.resolve().name,
        config=config,
        metrics=metrics,
        per_gene=read_per_gene(run),
        n_epochs=n_epochs,
        split=json.loads((run / "split.json").read_text("utf-8")),
    )


def strongest_first(results: RunResults) -> list[Gene]:
    """The panel by PCC × mean at 8 µm, as figures choose genes; last those that have no PCC."""
    strength = {
        row.gene_id: -(row.figures["pcc"] or 0.0) * (row.figures["mean"] or 0.0)
        for row in results.per_gene
        if row.scale_um == RANKING_UM and row.figures["pcc"] is not None
    }
    return sorted(results.panel, key=lambda gene: strength.get(gene.id, float("inf")))


def gene_label(gene: Gene, panel: Sequence[Gene]) -> str:
    """The symbol, with the id where another gene of the panel has the same symbol."""
    shared = Counter(g.symbol for g in panel)[gene.symbol] > 1
    return f"{gene.symbol} ({gene.id})" if shared else gene.symbol


def gene_table_data(results: RunResults, order: Sequence[Gene]) -> dict[str, Any]:
    """What the page's scripts fill the table and the list of genes with.

    Returns:
        ``{"columns": names, "first": names that begin a group, "subordinate": names, "genes":
        [{"id", "label", "figures": {"8": [numbers or null]}}]}``, genes in the order given.
    """
    names = [name for _, columns in COLUMNS for name, _ in columns]
    first = [columns[0][0] for _, columns in COLUMNS]
    figures: dict[str, dict[str, list[float | None]]] = {}
    for row in results.per_gene:
        by_scale = figures.setdefault(row.gene_id, {})
        by_scale[str(row.scale_um)] = [row.figures[name] for name in names]
    genes = [
        {"id": g.id, "label": gene_label(g, results.panel), "figures": figures[g.id]} for g in order
    ]
    return {"columns": names, "first": first, "subordinate": list(SUBORDINATE), "genes": genes}

"""The genes of a run: the panel, and with ``--panel all`` also every other gene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from virchow_st.config import TrainConfig, wants_all_genes
from virchow_st.errors import ConfigError
from virchow_st.run.integrity import GENES, PANEL
from virchow_st.run.panel import Panel, choose_panel, common_genes
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.types import Int64Array

if TYPE_CHECKING:
    from virchow_st.store.reader import Store

MIN_UMIS = 100
"""UMIs over all training patches that a gene needs to be one of ``--panel all``.

With fewer, its share in each of tens of factors rests on a few UMIs.
"""
_DEFAULT_PANEL = "top50"


@dataclass(frozen=True)
class RunGenes:
    """The genes that a run predicts.

    Attributes:
        panel: The genes that are scored in full, drawn and exported.
        all: Every gene that the run predicts, with those of the panel among them; the panel itself
            if the run predicts no other gene.
    """

    panel: Panel
    all: Panel

    @property
    def places(self) -> Int64Array:
        """Index of each gene of the panel among all genes, (P,)."""
        place = {gene: i for i, gene in enumerate(self.all.ids)}
        return np.array([place[gene] for gene in self.panel.ids], np.int64)

    @property
    def are_factors(self) -> bool:
        """Whether the genes are predicted as sums of factors."""
        return self.all is not self.panel

    def write(self, run: Path) -> None:
        """Write ``panel.tsv``, and ``genes.tsv`` if the run predicts more than the panel."""
        self.panel.write(run / PANEL)
        if self.are_factors:
            self.all.write(run / GENES)

    @classmethod
    def read(cls, run: Path) -> RunGenes:
        """Read the files written by `write`; raises `ConfigError` if they do not match."""
        panel = Panel.read(run / PANEL)
        if not (run / GENES).exists():
            return cls(panel, panel)
        genes = cls(panel, Panel.read(run / GENES))
        if missing := set(panel.ids) - set(genes.all.ids):
            raise ConfigError(
                f"{run / GENES}: expected every gene of {PANEL} in it; {min(missing)} is not; "
                "train again"
            )
        return genes


def check_factors(config: TrainConfig) -> None:
    """Raise `ConfigError` for settings that contradict each other about factors."""
    if not wants_all_genes(config.panel):
        if config.factors:
            raise ConfigError(
                f"factors: expected 0 with --panel {config.panel}, whose genes are predicted "
                f"directly; got {config.factors}; give --panel all, or all:{config.panel}"
            )
    elif config.loss != "poisson":
        raise ConfigError(
            f"loss: expected poisson with --panel {config.panel}, since every gene is predicted as "
            f"a sum of factors; got {config.loss}"
        )


def choose_genes(
    spec: str,
    train: Sequence[Store],
    others: Sequence[Store] = (),
    progress: Progress = SILENT,
) -> RunGenes:
    """Choose the genes of a run.

    With ``all`` these are the genes that every store lists and that have at least `MIN_UMIS` UMIs
    in the training stores. The panel is what follows after ``all:``, or the 50 most variable genes.

    Args:
        spec: As ``--panel``.
        train: Stores of the training patients.
        others: Further stores that have to list the genes; only their gene lists are read.
        progress: Receives warnings and how many genes were left out.

    Raises:
        ConfigError: As `virchow_st.run.panel.choose_panel`.
    """
    if not wants_all_genes(spec):
        panel = choose_panel(spec, train, others, progress)
        return RunGenes(panel, panel)
    panel = choose_panel(
        spec.removeprefix("all").removeprefix(":") or _DEFAULT_PANEL, train, others
    )
    common = common_genes(train, others, progress)
    umis = np.sum([store.genes.totals[common.indices(store)] for store in train], axis=0)
    in_panel = set(panel.ids)
    chosen = [
        gene
        for gene, total in zip(common.ids, umis, strict=True)
        if total >= MIN_UMIS or gene in in_panel
    ]
    progress.note(
        f"{len(chosen)} of {len(common)} genes have at least {MIN_UMIS} UMIs in the training "
        "stores and are predicted"
    )
    return RunGenes(panel, common.of(chosen))

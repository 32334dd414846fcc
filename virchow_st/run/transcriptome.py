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
from virchow_st.run.panel import ABSENT, Panel, candidate_genes, choose_panel
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.store.genes import some
from virchow_st.types import BoolArray, Int64Array

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
    genes_in: str = "all",
) -> RunGenes:
    """Choose the genes of a run.

    With ``all`` these are the genes that have at least `MIN_UMIS` UMIs in the training stores. The
    panel is what follows after ``all:``, or the 50 most variable genes. Both are chosen from
    `virchow_st.run.panel.candidate_genes`.

    Args:
        spec: As ``--panel``.
        train: Stores of the training patients.
        others: Stores of the test patient; only their gene lists are read.
        progress: Receives warnings, how many genes were left out, and which stores lack genes.
        genes_in: As ``--genes-in``.

    Raises:
        ConfigError: As `virchow_st.run.panel.choose_panel`; or no gene of the panel was measured on
            all slides of the test patient.
    """
    if not wants_all_genes(spec):
        panel = choose_panel(spec, train, others, progress, genes_in)
        genes = RunGenes(panel, panel)
    else:
        panel = choose_panel(
            spec.removeprefix("all").removeprefix(":") or _DEFAULT_PANEL,
            train,
            others,
            genes_in=genes_in,
        )
        candidates = candidate_genes(train, others, progress, genes_in)
        umis = np.sum([_totals(store, candidates) for store in train], axis=0)
        in_panel = set(panel.ids)
        chosen = [
            gene
            for gene, total in zip(candidates.ids, umis, strict=True)
            if total >= MIN_UMIS or gene in in_panel
        ]
        progress.note(
            f"{len(chosen)} of {len(candidates)} genes have at least {MIN_UMIS} UMIs in the "
            "training stores and are predicted"
        )
        genes = RunGenes(panel, candidates.of(chosen))
    _tell_of_absent_genes(genes, train, others, progress)
    return genes


def _totals(store: Store, candidates: Panel) -> Int64Array:
    """UMIs of each candidate in a store, 0 for those that it does not list."""
    places = candidates.places(store)
    return np.where(places == ABSENT, 0, store.genes.totals[places])


def _tell_of_absent_genes(
    genes: RunGenes, train: Sequence[Store], others: Sequence[Store], progress: Progress
) -> None:
    """Note which training stores lack genes, and warn of genes that cannot be scored."""
    for store, measured in zip(train, genes.all.measured(train), strict=True):
        if absent := _names(genes.all, ~measured):
            progress.note(
                f"{store.path}: did not measure {len(absent)} of the {len(genes.all)} genes, "
                f"{some(absent)}; they are learned from the other stores"
            )
    if not others:
        return
    scored = genes.panel.measured_everywhere(others)
    if not scored.any():
        raise ConfigError(
            f"panel: expected a gene that was measured on {others[0].path}; none of the "
            f"{len(scored)} was, such as {some(genes.panel.ids)}; give --genes-in all"
        )
    if absent := _names(genes.panel, ~scored):
        progress.warn(
            f"the test patient {others[0].patient}: {len(absent)} of the {len(scored)} genes of "
            f"the panel were not measured and cannot be scored, {some(absent)}; --genes-in all "
            "chooses among the genes that all stores list"
        )


def _names(panel: Panel, chosen: BoolArray) -> list[str]:
    return [panel.symbols[i] or panel.ids[i] for i in np.flatnonzero(chosen)]

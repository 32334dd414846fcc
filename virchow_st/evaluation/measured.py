"""Genes of a run that were measured on its test slides, and can be scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.run.panel import Panel
from virchow_st.run.transcriptome import RunGenes
from virchow_st.store.genes import some
from virchow_st.store.reader import Store
from virchow_st.types import BoolArray, Int64Array

Index = slice | Int64Array
"""Genes out of an array of all: a slice of them all, which copies nothing, or their indices."""


@dataclass(frozen=True)
class MeasuredGenes:
    """Genes that every test slide measured; the others are predicted, but not scored.

    Attributes:
        panel: Those of the run's panel.
        of_panel: Their places in the run's panel.
        all: Those of all genes that the run predicts.
        of_all: Their places among them.
        absent: Genes of the run's panel that a test slide did not measure.
    """

    panel: Panel
    of_panel: Index
    all: Panel
    of_all: Index
    absent: Panel

    @classmethod
    def on(cls, genes: RunGenes, stores: Sequence[Store]) -> MeasuredGenes:
        """Genes of a run that were measured on all of some slides.

        Args:
            genes: Genes of the run.
            stores: Stores of the test slides.

        Raises:
            ConfigError: No gene of the panel was.
        """
        in_panel = genes.panel.measured_everywhere(stores)
        if not in_panel.any():
            raise ConfigError(
                f"{stores[0].path}: expected genes of the run's panel, such as "
                f"{some(genes.panel.ids)}; it measured none of them; train with --genes-in all"
            )
        panel, of_panel = _chosen(genes.panel, in_panel)
        every, of_all = panel, of_panel
        if genes.are_factors:
            every, of_all = _chosen(genes.all, genes.all.measured_everywhere(stores))
        absent, _ = _chosen(genes.panel, ~in_panel)
        return cls(panel, of_panel, every, of_all, absent)

    def metrics(self) -> dict[str, Any]:
        """``not_measured`` of ``metrics.json``; nothing if the whole panel was measured."""
        if not len(self.absent):
            return {}
        return {"not_measured": [{"id": g.id, "symbol": g.symbol} for g in self.absent.genes]}


def _chosen(panel: Panel, chosen: BoolArray) -> tuple[Panel, Index]:
    if chosen.all():
        return panel, slice(None)
    places = np.flatnonzero(chosen)
    return panel.of([panel.ids[i] for i in places]), places

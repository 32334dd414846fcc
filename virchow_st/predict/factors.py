"""Runs with factors in whole-slide prediction: factors are stitched in the place of rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.field.loadings import Loadings
from virchow_st.predict.image import TrainedRun
from virchow_st.predict.load import Run
from virchow_st.run.panel import Panel
from virchow_st.types import Array, Float32Array, UInt8Array


class FactorsOf:
    """A run that gives its factors as rates; a `virchow_st.predict.image.TrainedRun`."""

    def __init__(self, run: Run, n_factors: int) -> None:
        self._run = run
        self.path: Path = run.path
        self.state: dict[str, Any] = run.state
        self.n_genes = n_factors
        self.wants_image = run.wants_image

    def rates(self, tokens: Array, image: UInt8Array | None = None) -> Float32Array:
        """Factors (B, K, 128, 128) of a batch of patches; see `Run.factors`."""
        return self._run.factors(tokens, image)


def maps_of(runs: Sequence[Run]) -> tuple[list[TrainedRun], Loadings]:
    """What is stitched of several runs, and the loadings of these maps.

    The mean over n runs with factors is a sum of factors again, ``Σ_r (W_r / n) · h_r``: the
    factors of all runs, with their loadings divided by n. It is exact; its spread is no such sum.

    Args:
        runs: all with factors, which share genes, or all without, of one panel.

    Returns:
        The runs, which give factors where they have any; and the loadings of the maps of one run
        after another, for the genes that all runs predict. Without factors the maps are the rates
        of the panel, once per run.
    """
    genes = genes_of_all(runs)
    given: list[TrainedRun] = []
    loadings = []
    for run in runs:
        if (values := run.loadings) is None:
            return list(runs), Loadings(runs[0].panel)
        place = {gene: i for i, gene in enumerate(run.genes.all.ids)}
        loadings.append(values[[place[gene] for gene in genes.ids]] / len(runs))
        given.append(FactorsOf(run, values.shape[1]))
    return given, Loadings(genes, np.concatenate(loadings, axis=1).astype(np.float32))


def genes_of_all(runs: Sequence[Run]) -> Panel:
    """The genes that all runs predict, in the order of the first.

    Folds of one cohort predict slightly different genes with ``--panel all``, since a rare gene has
    enough UMIs in some training patients and not in others.
    """
    first = runs[0].genes.all
    shared = set(first.ids).intersection(*(run.genes.all.ids for run in runs))
    return first.of([gene for gene in first.ids if gene in shared])


def panel_of_all(runs: Sequence[Run]) -> Panel:
    """The genes of the first run's panel that all runs predict.

    Raises:
        ConfigError: there is none.
    """
    panel = runs[0].panel
    if len(runs) == 1 or runs[0].loadings is None:
        return panel
    shared = set(genes_of_all(runs).ids)
    ids = [gene for gene in panel.ids if gene in shared]
    if not ids:
        raise ConfigError(
            f"{runs[0].path}: expected genes of its panel that all runs predict; got none; give "
            "runs on slides of one annotation"
        )
    return panel.of(ids)

"""Runs with factors in whole-slide prediction: factors are stitched in the place of rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from virchow_st.field.loadings import Loadings
from virchow_st.predict.image import TrainedRun
from virchow_st.predict.load import Run
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
    """What is stitched of runs that predict the same genes, and the loadings of these maps.

    The mean over n runs with factors is a sum of factors again, ``Σ_r (W_r / n) · h_r``: the
    factors of all runs, with their loadings divided by n. It is exact; its spread is no such sum.

    Args:
        runs: all with factors, or all without.

    Returns:
        The runs, which give factors where they have any; and the loadings of the maps of one run
        after another. Without factors the maps are the rates of the panel, once per run.
    """
    loadings = [run.loadings for run in runs]
    with_factors = [
        (run, values) for run, values in zip(runs, loadings, strict=True) if values is not None
    ]
    if not with_factors:
        return list(runs), Loadings(runs[0].panel)
    every = np.concatenate([values for _, values in with_factors], axis=1) / len(runs)
    given: list[TrainedRun] = [FactorsOf(run, values.shape[1]) for run, values in with_factors]
    return given, Loadings(runs[0].genes.all, every.astype(np.float32))

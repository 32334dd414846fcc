"""All baselines of a run, fitted in one pass over its training patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from virchow_st.evaluation.baselines.depth import DepthFit, depth_rates
from virchow_st.evaluation.baselines.nuclei import NuclearFit, nuclear_rates
from virchow_st.evaluation.baselines.regression import LinearMap
from virchow_st.evaluation.baselines.ridge import RidgeFit, token_rates
from virchow_st.run.panel import Panel
from virchow_st.run.split import Split
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.store.reader import Patch, Store
from virchow_st.types import Array, Float32Array, Float64Array, Int64Array

Baseline = Literal["gene_mean", "nuclear_density", "ridge", "total_umi"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
ORACLES: tuple[Baseline, ...] = ("total_umi",)
"""Baselines that read the test slide's counts: no model, but a yardstick."""
LEAST_RATE = 0.01
"""Smallest rate of a regression, as a share of the gene's training mean: lines cross zero."""


@dataclass(frozen=True)
class Baselines:
    """Fitted baselines.

    Attributes:
        train_rate: (G,) mean UMIs of a 2 µm tissue bin in training.
        nuclear, ridge: regressions to UMIs per 2 µm bin.
        ridge_penalty: the penalty that the validation patches chose.
        depth_odds: (G,) UMIs of a gene for each UMI of all other genes.
    """

    train_rate: Float64Array
    nuclear: LinearMap
    ridge: LinearMap
    ridge_penalty: float
    depth_odds: Float64Array

    def rate(self, name: Baseline, patch: Patch, counts: Float32Array) -> Float32Array:
        """Rates of a test patch, (G, 128, 128) float32, expected UMIs per 2 µm bin.

        Args:
            name: which baseline.
            patch: of a store with the run's tokens.
            counts: (G, 128, 128) float32, the patch's panel counts; only an oracle reads them.
        """
        if name == "gene_mean":
            mean = self.train_rate.astype(np.float32)
            return np.broadcast_to(mean[:, None, None], counts.shape)
        if name == "nuclear_density":
            return self._floored(nuclear_rates(self.nuclear, patch.image))
        if name == "ridge":
            return self._floored(token_rates(self.ridge, patch.tokens))
        return depth_rates(self.depth_odds, patch, counts)

    def _floored(self, rate: Array) -> Float32Array:
        least = (LEAST_RATE * self.train_rate).astype(np.float32)
        return np.maximum(rate, least[:, None, None], dtype=np.float32)


def fit_baselines(
    stores: Sequence[Store],
    panel: Panel,
    split: Split,
    train_rate: Float64Array,
    progress: Progress = SILENT,
) -> Baselines:
    """Fit on the training patches; the validation patches pick the penalty of the ridge.

    Args:
        stores: of the run.
        panel: genes, G of them.
        split: which patches train and validate; its test patches are not read.
        train_rate: (G,) mean UMIs of a 2 µm tissue bin in training.
        progress: who listens.

    Raises:
        ConfigError: a panel gene is missing in a store, or no training token lies in tissue.
    """
    grid, _, dim = stores[0].token_shape
    ridge = RidgeFit(grid, dim, len(panel))
    nuclear, depth = NuclearFit(len(panel)), DepthFit(len(panel))
    genes: dict[int, Int64Array] = {}
    n_train = len(split.train)
    members = (*split.train, *split.validation)
    for i, member in enumerate(members):
        store = stores[member.store]
        if member.store not in genes:
            genes[member.store] = panel.indices(store)
        patch, validates = store[member.patch], i >= n_train
        mask = patch.tissue_mask
        ridge.add(patch.tokens, patch.dense_counts(genes[member.store]), mask, validates)
        if not validates:
            counts = patch.panel_counts(genes[member.store])
            nuclear.add(patch.image, counts, mask)
            depth.add(patch, counts, mask)
        progress.step(i + 1, len(members), "patches", "baselines")
    fit, penalty = ridge.solve()
    return Baselines(train_rate, nuclear.solve(), fit, penalty, depth.solve())

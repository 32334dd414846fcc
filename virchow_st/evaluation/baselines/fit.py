"""Fits all baselines of a run in one pass over its training and validation patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from virchow_st.evaluation.baselines.depth import DepthFit, depth_rates
from virchow_st.evaluation.baselines.nuclei import NuclearFit, nuclear_rates
from virchow_st.evaluation.baselines.regression import LinearMap
from virchow_st.evaluation.baselines.ridge import RidgeFit, token_rates
from virchow_st.run.exposure import CohortExposure
from virchow_st.run.panel import Panel
from virchow_st.run.score_table import Baseline
from virchow_st.run.split import Split
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.store.reader import Patch, Store
from virchow_st.types import Array, Float32Array, Float64Array, Int64Array

ORACLES: tuple[Baseline, ...] = ("total_umi",)
"""Baselines that read the counts of the test slide, for comparison only."""
LEAST_RATE = 0.01
"""Lower bound of a regression's rates, which could be negative, relative to the training mean."""


@dataclass(frozen=True)
class Baselines:
    """Fitted baselines.

    Attributes:
        train_rate: (G,) mean UMIs per 2 µm tissue bin of the training patches.
        nuclear, ridge: Linear regressions to UMIs per 2 µm bin, on nuclear density and on tokens.
        ridge_penalty: Penalty of the ridge regression, selected on the validation patches.
        depth_odds: (G,) UMIs of a gene per UMI of all other genes.
    """

    train_rate: Float64Array
    nuclear: LinearMap
    ridge: LinearMap
    ridge_penalty: float
    depth_odds: Float64Array

    def rate(self, name: Baseline, patch: Patch, counts: Float32Array) -> Float32Array:
        """Predict a test patch; returns (G, 128, 128) float32, UMIs per 2 µm bin.

        Args:
            name: Name of the baseline.
            patch: A patch of a store of the run.
            counts: (G, 128, 128) float32, panel counts of the patch; read by oracles only.
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
    exposure: CohortExposure | None = None,
) -> Baselines:
    """Fit all baselines on the training patches; validation patches select the ridge penalty.

    Args:
        stores: Stores of the run.
        panel: Genes, G of them.
        split: Training and validation patches; its test patches are not read.
        train_rate: (G,) mean UMIs per 2 µm tissue bin of the training patches.
        progress: Receives notes, warnings and step counts.
        exposure: Exposure of the training slides; the regressions are then fitted to the counts per
            exposure. None for 1 in all tissue.

    Raises:
        ConfigError: A store lacks a panel gene, or no training or validation token lies in tissue.
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
        dense = patch.dense_counts(genes[member.store])
        per_exposure = None
        if exposure is not None:
            per_exposure = 1 / exposure.of_patch(member.store, patch.info)
            dense *= per_exposure
        ridge.add(patch.tokens, dense, mask, validates)
        if not validates:
            counts = patch.panel_counts(genes[member.store])
            of_tissue = counts
            if per_exposure is not None:
                factor = per_exposure.ravel()[counts.position]
                of_tissue = replace(counts, count=counts.count * factor)
            nuclear.add(patch.image, of_tissue, mask)
            depth.add(patch, counts, mask)
        progress.step(i + 1, len(members), "patches", "baselines")
    fit, penalty = ridge.solve()
    return Baselines(train_rate, nuclear.solve(), fit, penalty, depth.solve())

"""Fits all baselines of a run in one pass over its training and validation patches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from virchow_st.evaluation.baselines.depth import DepthFit, depth_rates, total_umi
from virchow_st.evaluation.baselines.nuclei import NuclearFit, nuclear_features, nuclear_rates
from virchow_st.evaluation.baselines.regression import LinearMap, joined
from virchow_st.evaluation.baselines.ridge import RidgeFit, solve_together, token_rates
from virchow_st.metrics.partial import Controls
from virchow_st.run.exposure import CohortExposure
from virchow_st.run.panel import Panel
from virchow_st.run.score_table import Baseline
from virchow_st.run.split import Split
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.store.reader import Patch, Store
from virchow_st.types import (
    PATCH_BINS,
    Array,
    BoolArray,
    Float32Array,
    Float64Array,
    Int64Array,
)

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

    def rate(
        self,
        name: Baseline,
        patch: Patch,
        counts: Float32Array,
        controls: Controls | None = None,
    ) -> Float32Array:
        """Predict a test patch; returns (G, 128, 128) float32, UMIs per 2 µm bin.

        Args:
            name: Name of the baseline.
            patch: A patch of a store of the run.
            counts: (G, 128, 128) float32, panel counts of the patch; read by oracles only.
            controls: `patch_controls` of the patch, where they are known; they are computed if
                needed. Total UMIs are read by oracles only.
        """
        if name == "gene_mean":
            mean = self.train_rate.astype(np.float32)
            return np.broadcast_to(mean[:, None, None], counts.shape)
        if name == "nuclear_density":
            controls = controls or patch_controls(patch)
            return self._floored(nuclear_rates(self.nuclear, controls.nuclei))
        if name == "ridge":
            return self._floored(token_rates(self.ridge, patch.tokens))
        controls = controls or patch_controls(patch)
        return depth_rates(self.depth_odds, controls.total, counts)

    def _floored(self, rate: Array) -> Float32Array:
        least = (LEAST_RATE * self.train_rate).astype(np.float32)
        return np.maximum(rate, least[:, None, None], dtype=np.float32)


def patch_controls(patch: Patch) -> Controls:
    """Total UMIs and nuclear density of a patch, which baselines and ``pcc_partial`` use."""
    total = total_umi(patch).reshape(PATCH_BINS, PATCH_BINS)
    nuclei = nuclear_features(patch.image).T.reshape(-1, PATCH_BINS, PATCH_BINS)
    return Controls(total, nuclei)


def fit_baselines(
    stores: Sequence[Store],
    panel: Panel,
    split: Split,
    train_rate: Float64Array,
    progress: Progress = SILENT,
    exposure: CohortExposure | None = None,
) -> Baselines:
    """Fit all baselines on the training patches; validation patches select the ridge penalty.

    A gene's baselines are fitted on the patches whose stores measured it.

    Args:
        stores: Stores of the run.
        panel: Genes, G of them.
        split: Training and validation patches; its test patches are not read.
        train_rate: (G,) mean UMIs per 2 µm tissue bin of the training patches.
        progress: Receives notes, warnings and step counts.
        exposure: Exposure of the training slides; the regressions are then fitted to the counts per
            exposure. None for 1 in all tissue.

    Raises:
        ConfigError: No training or validation token lies in tissue.
    """
    measured = panel.measured(stores)
    groups = [_Group.of(stores, panel, *group) for group in _alike(measured, split)]
    n_train = len(split.train)
    members = (*split.train, *split.validation)
    for i, member in enumerate(members):
        patch = stores[member.store][member.patch]
        per_exposure: Array | None = None
        if exposure is not None:
            per_exposure = 1 / exposure.of_patch(member.store, patch.info)
        for group in groups:
            if member.store in group.of_store:
                genes = group.of_store[member.store]
                group.add(patch, genes, per_exposure, validates=i >= n_train)
        progress.step(i + 1, len(members), "patches", "baselines")
    fits, penalty = solve_together([group.ridge for group in groups])
    places = [group.places for group in groups]
    odds = np.empty(len(panel))
    for group in groups:
        odds[group.places] = group.depth.solve()
    nuclear = joined([group.nuclear.solve() for group in groups], places)
    return Baselines(train_rate, nuclear, joined(fits, places), penalty, odds)


@dataclass(frozen=True)
class _Group:
    """Baselines of the genes that the same training stores measured.

    Attributes:
        places: (g,) the genes' places in the panel.
        of_store: Their indices in each training store that measured them, by the store's index.
        ridge, nuclear, depth: The fits.
    """

    places: Int64Array
    of_store: dict[int, Int64Array]
    ridge: RidgeFit
    nuclear: NuclearFit
    depth: DepthFit

    @classmethod
    def of(
        cls, stores: Sequence[Store], panel: Panel, places: Int64Array, in_stores: Int64Array
    ) -> _Group:
        grid, _, dim = stores[0].token_shape
        n = len(places)
        genes = panel if n == len(panel) else panel.of([panel.ids[i] for i in places])
        of_store = {int(i): genes.indices(stores[i]) for i in in_stores}
        return cls(places, of_store, RidgeFit(grid, dim, n), NuclearFit(n), DepthFit(n))

    def add(
        self, patch: Patch, genes: Int64Array, per_exposure: Array | None, validates: bool
    ) -> None:
        """Add a patch of a store that measured the genes."""
        mask, dense = patch.tissue_mask, patch.dense_counts(genes)
        if per_exposure is not None:
            dense *= per_exposure
        self.ridge.add(patch.tokens, dense, mask, validates)
        if validates:
            return
        counts = patch.panel_counts(genes)
        of_tissue = counts
        if per_exposure is not None:
            factor = per_exposure.ravel()[counts.position]
            of_tissue = replace(counts, count=counts.count * factor)
        self.nuclear.add(patch.image, of_tissue, mask)
        self.depth.add(patch, counts, mask)


def _alike(measured_SG: BoolArray, split: Split) -> Iterator[tuple[Int64Array, Int64Array]]:
    """Places of genes that the same stores of the training patients measured, and these stores."""
    stores = np.unique([member.store for member in (*split.train, *split.validation)])
    patterns, group = np.unique(measured_SG[stores], axis=1, return_inverse=True)
    for i in range(patterns.shape[1]):
        yield np.flatnonzero(group.reshape(-1) == i), stores[patterns[:, i]]

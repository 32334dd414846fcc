"""Comparison of predictions with the true rates of a simulated slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.kernels.pooling import pool_mask, sum_pool
from virchow_st.metrics.correlation import moments, pearson_from_moments
from virchow_st.run.panel import Panel
from virchow_st.simulate.truth import read_origin, true_rate
from virchow_st.store.format import PatchInfo
from virchow_st.store.reader import Store
from virchow_st.types import (
    BIN_UM,
    PATCH_BINS,
    SCALES_UM,
    Array,
    BoolArray,
    Float32Array,
    Float64Array,
)


class TruthScores:
    """Accumulates correlations with the true rates at every scale, patch by patch.

    Args:
        path: ``truth.h5`` of the test slide.
        store: Store of the test slide.
        panel: Genes, G of them.

    Raises:
        ConfigError: The file was not written by ``vst simulate``, or belongs to another patient.
    """

    def __init__(self, path: Path, store: Store, panel: Panel) -> None:
        patient = read_origin(path).get("patient")
        if patient != store.patient:
            actual = f"one of {patient}" if patient else "no such file"
            raise ConfigError(
                f"{path}: expected the truth.h5 of simulated {store.patient}; got {actual}; give "
                f"the one that vst simulate wrote beside its outs"
            )
        self._path, self._gene_ids = path, panel.ids
        shape = (len(SCALES_UM), len(panel), 6)
        self._of_prediction: Float64Array = np.zeros(shape)
        self._of_truth: Float64Array = np.zeros(shape)
        self._of_shown: Float64Array = np.zeros(shape)

    def update(
        self, info: PatchInfo, rate: Float32Array, counts: Array, tissue_mask: BoolArray
    ) -> None:
        """Add one patch.

        Args:
            info: Position of the patch.
            rate: (G, 128, 128) predicted UMIs per 2 µm bin.
            counts: (G, 128, 128) observed UMIs per 2 µm bin.
            tissue_mask: (128, 128) bool, True = tissue.

        Raises:
            SlideError: The file lacks a gene of the panel, or the patch lies outside its slide.
        """
        true, shown = self.rate(info), self.rate(info, shown=True)
        for i, scale in enumerate(SCALES_UM):
            factor = scale // BIN_UM
            mask = pool_mask(np.ascontiguousarray(tissue_mask), factor)
            lam, truth, of_image, k = (
                sum_pool(np.ascontiguousarray(x), factor) for x in (rate, true, shown, counts)
            )
            self._of_prediction[i] += moments(lam, truth, mask)
            self._of_truth[i] += moments(truth, k, mask)
            self._of_shown[i] += moments(of_image, k, mask)

    def rate(self, info: PatchInfo, shown: bool = False) -> Float32Array:
        """True rates (G, 128, 128) of a patch, UMIs per 2 µm bin; errors as `update`.

        With ``shown``, only the part that H&E shows.
        """
        window = info.row0, info.col0, PATCH_BINS, PATCH_BINS
        return true_rate(self._path, self._gene_ids, *window, shown=shown)

    def compute(self) -> dict[str, Any]:
        """Averages over the genes whose counts vary, by scale: ``truth`` of ``metrics.json``.

        ``pcc_with_truth`` is Pearson's r of predicted and true rate. ``pcc_of_truth`` is that of
        true rate and counts, which ``pcc_ceiling`` estimates from the counts alone.
        ``pcc_of_shown`` is that of the counts and the part of the true rate that H&E shows, which
        no prediction from H&E exceeds by more than chance.
        """
        averages = {}
        for i, scale in enumerate(SCALES_UM):
            of_truth = pearson_from_moments(self._of_truth[i])
            with_truth = pearson_from_moments(self._of_prediction[i])
            of_shown = pearson_from_moments(self._of_shown[i])
            scored = np.isfinite(of_truth)
            known = scored & np.isfinite(with_truth)
            averages[str(scale)] = {
                "pcc_with_truth": float(with_truth[known].mean()) if known.any() else None,
                "pcc_of_truth": float(of_truth[scored].mean()) if scored.any() else None,
                "pcc_of_shown": float(of_shown[scored].mean()) if scored.any() else None,
            }
        return averages

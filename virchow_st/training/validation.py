"""Validation during training: mean loss and mean PCC over genes at every scale.

Shape suffixes: B patches, G genes, R = C = bins per side, S scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from virchow_st.kernels.moments import masked_moments
from virchow_st.kernels.pooling import pool_mask, sum_pool
from virchow_st.metrics.correlation import pearson_from_moments
from virchow_st.models.losses.base import Counts, dense_counts
from virchow_st.models.losses.targets import BatchCounts
from virchow_st.runtime.distributed import Processes
from virchow_st.training.feed.base import DeviceBatch
from virchow_st.types import BIN_UM, Array, BoolArray, Float64Array


class ValidationSums:
    """Sums over the validation patches, which are distributed over the processes.

    Args:
        scales_um: Sides of the scored bins, µm; S of them.
        n_genes: Number of genes G.
        device: Device of losses and rates.
    """

    def __init__(self, scales_um: Sequence[int], n_genes: int, device: torch.device) -> None:
        self._scales_um = scales_um
        self._loss_S = torch.zeros(len(scales_um), device=device)
        self._moments_SG6 = torch.zeros(
            (len(scales_um), n_genes, 6), dtype=torch.float64, device=device
        )

    def add(
        self,
        batch: DeviceBatch,
        counts: Counts,
        rates_BGRC: Tensor,
        losses_S: Tensor,
        measured_BG: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            batch: Patches of the batch.
            counts: Their UMI counts of the genes that the rates are of.
            rates_BGRC: Predicted UMIs per 2 µm bin.
            losses_S: Mean loss of the batch at each scale.
            measured_BG: (B, G) bool on the CPU, whether each patch's store measured each gene;
                others are not correlated there. None if every store measured every gene.
        """
        self._loss_S += losses_S * len(batch.members)
        if measured_BG is None:
            measured_BG = torch.ones(rates_BGRC.shape[:2], dtype=torch.bool)
        if isinstance(counts, BatchCounts):
            # On a CPU the kernels of evaluation are used, which need no temporary maps.
            moments = self._moments_SG6.numpy()
            masks = batch.tissue_mask.numpy()
            known = measured_BG.numpy()[:, :, None]
            maps = zip(rates_BGRC.numpy(), counts.dense(), masks, known, strict=True)
            for rate, dense, mask, of_known in maps:
                for i, scale in enumerate(self._scales_um):
                    moments[i] += np.where(of_known, pooled_moments(rate, dense, mask, scale), 0.0)
            return
        counts_BGRC = dense_counts(counts, rates_BGRC.device)
        known_BG1 = measured_BG.to(rates_BGRC.device)[:, :, None]
        for rate_GRC, counts_GRC, mask_RC, known_G1 in zip(
            rates_BGRC, counts_BGRC, batch.tissue_mask, known_BG1, strict=True
        ):
            for i, scale in enumerate(self._scales_um):
                of_scale = device_moments(rate_GRC, counts_GRC, mask_RC, scale)
                self._moments_SG6[i] += torch.where(known_G1, of_scale, 0.0)

    def compute(self, n_patches: int, processes: Processes) -> tuple[Tensor, Tensor]:
        """Mean loss and mean PCC over genes, (S,) each, of all processes; to be called once."""
        losses_S = processes.sum(self._loss_S) / n_patches
        moments = processes.sum(self._moments_SG6).cpu().numpy()
        return losses_S, torch.tensor([_mean_pcc(m) for m in moments])


def pooled_moments(rate: Array, counts: Array, mask: BoolArray, scale_um: int) -> Float64Array:
    """Moments (G, 6) of a patch's rates and counts (G, 128, 128), each summed to a scale."""
    factor = scale_um // BIN_UM
    n_genes = len(rate)
    return masked_moments(
        sum_pool(rate, factor).reshape(n_genes, -1),
        sum_pool(np.ascontiguousarray(counts), factor).reshape(n_genes, -1),
        pool_mask(np.ascontiguousarray(mask), factor).ravel(),
    )


def device_moments(rate_GRC: Tensor, counts_GRC: Tensor, mask_RC: Tensor, scale_um: int) -> Tensor:
    """`pooled_moments` with torch, on the device of the maps."""
    f = scale_um // BIN_UM
    n = mask_RC.shape[0] // f
    whole = mask_RC.view(n, f, n, f).all(3).all(1)
    x, y = (
        torch.where(whole, m.double().view(-1, n, f, n, f).sum((2, 4)), 0.0).flatten(1)
        for m in (rate_GRC, counts_GRC)
    )
    n_bins = whole.sum().double().expand(len(x))
    sums = (x.sum(1), y.sum(1), (x * x).sum(1), (y * y).sum(1), (x * y).sum(1))
    return torch.stack([n_bins, *sums], dim=1)


def _mean_pcc(moments: Float64Array) -> float:
    pcc = pearson_from_moments(moments)
    return float(np.nanmean(pcc)) if np.isfinite(pcc).any() else math.nan

"""Genes that only some of the patches' stores measured.

Shape suffixes: B patches, G genes, R = C = bins per side at 2 µm, S scales.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AlikePatches:
    """Patches of a batch whose stores measured the same genes.

    Attributes:
        patches: Int64 indices of the patches in the batch.
        genes: Int64 indices of the genes that were measured.
    """

    patches: Tensor
    genes: Tensor


def alike_patches(measured_BG: Tensor) -> list[AlikePatches]:
    """Divide a batch into patches whose stores measured the same genes.

    Args:
        measured_BG: (B, G) bool on the CPU.

    Returns:
        The groups in order of their first patch; patches without any gene are in none.

    Example:
        >>> groups = alike_patches(torch.tensor([[True, False], [True, True], [True, False]]))
        >>> [(group.patches.tolist(), group.genes.tolist()) for group in groups]
        [([0, 2], [0]), ([1], [0, 1])]
    """
    by_genes: dict[bytes, list[int]] = {}
    for patch, genes in enumerate(measured_BG.numpy()):
        by_genes.setdefault(genes.tobytes(), []).append(patch)
    groups = [
        AlikePatches(torch.tensor(patches), measured_BG[patches[0]].nonzero()[:, 0])
        for patches in by_genes.values()
    ]
    return [group for group in groups if len(group.genes)]


def measured_bins(
    count_bins: Callable[[Tensor, Sequence[int]], Tensor],
    mask_BRC: Tensor,
    scales_um: Sequence[int],
    measured_BG: Tensor | None,
    n_genes: int,
) -> Tensor:
    """Number of pairs of a gene and a bin with tissue that were measured, at each scale, (S,).

    Args:
        count_bins: Counts the bins of each scale that contain tissue, such as
            `virchow_st.models.losses.scales.tissue_bins`.
        mask_BRC: (B, R, C) bool, True = tissue.
        scales_um: Sides of the bins in increasing order, µm.
        measured_BG: (B, G) bool on the CPU; None if every store measured every gene.
        n_genes: Number of genes G.

    Example:
        >>> from virchow_st.models.losses.scales import tissue_bins
        >>> mask, measured = torch.ones(2, 2, 2) > 0, torch.tensor([[True, False], [True, True]])
        >>> measured_bins(tissue_bins, mask, (2, 4), measured, n_genes=2)
        tensor([12,  3])
    """
    if measured_BG is None:
        return count_bins(mask_BRC, scales_um) * n_genes
    sums = [
        count_bins(mask_BRC[group.patches.to(mask_BRC.device)], scales_um) * len(group.genes)
        for group in alike_patches(measured_BG)
    ]
    none = torch.zeros(len(scales_um), dtype=torch.int64, device=mask_BRC.device)
    return sum(sums, start=none).clamp(min=1)


def of_measured(maps_BGRC: Tensor, measured_BG: Tensor | None) -> Tensor:
    """The maps with 0 instead of those of genes that were not measured.

    Args:
        maps_BGRC: Maps whose sum is a loss.
        measured_BG: (B, G) bool on the CPU; None if every store measured every gene.

    Example:
        >>> of_measured(torch.ones(1, 2, 1, 1), torch.tensor([[True, False]])).flatten()
        tensor([1., 0.])
    """
    if measured_BG is None:
        return maps_BGRC
    return torch.where(measured_BG.to(maps_BGRC.device)[:, :, None, None], maps_BGRC, 0.0)

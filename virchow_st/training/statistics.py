"""Means and standard deviations of the training patches, computed before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from virchow_st.run.split import Member
from virchow_st.runtime.devices import core_count
from virchow_st.training.dataset import PatchDataset
from virchow_st.types import BIN_UM, SCALES_UM, BoolArray, Float32Array, Float64Array, Int64Array


@dataclass(frozen=True)
class TrainingStatistics:
    """Means and standard deviations of the training patches.

    Attributes:
        token_mean, token_std: (D,) mean and standard deviation over all tokens.
        rate: (G,) mean UMIs per 2 µm tissue bin of exposure 1: the gene's UMIs over the sum of the
            exposure of the patches whose stores measured it; a gene without counts gets half a UMI
            over all their bins, so that its logarithm is finite.
        std: (4, G) standard deviation of the summed counts at 2, 4, 8 and 16 µm, over the bins of
            these patches that contain tissue; 1 for a gene without counts.
    """

    token_mean: Float32Array
    token_std: Float32Array
    rate: Float64Array
    std: Float64Array


def training_statistics(dataset: PatchDataset, members: Sequence[Member]) -> TrainingStatistics:
    """Compute the statistics in one pass, in float64.

    Patches are read in parallel and added in order, so that the result is reproducible.

    Args:
        dataset: Patches of the run.
        members: Training patches.
    """
    n_tokens = 0
    token_sums: Float64Array = np.zeros((2, dataset.token_shape[-1]))
    shape = len(SCALES_UM), len(dataset.panel)
    n_bins: Int64Array = np.zeros(shape, np.int64)
    sums: Float64Array = np.zeros((2, *shape))
    exposed: Float64Array = np.zeros(len(dataset.panel))
    with ThreadPoolExecutor(core_count()) as pool:
        parts = pool.map(lambda member: _sums_of_patch(dataset, member), members)
        for member, (n, of_tokens, bins, of_counts, exposure) in zip(members, parts, strict=True):
            measured = dataset.measured_SG[member.store]
            n_tokens += n
            token_sums += of_tokens
            n_bins += bins[:, None] * measured
            sums += of_counts
            exposed += exposure * measured
    mean, mean_square = token_sums / n_tokens
    count_mean, count_mean_square = sums / n_bins
    std = np.sqrt(np.maximum(count_mean_square - count_mean**2, 0.0))
    return TrainingStatistics(
        token_mean=mean.astype(np.float32),
        token_std=np.sqrt(np.maximum(mean_square - mean**2, 0.0)).astype(np.float32),
        rate=np.maximum(sums[0, 0], 0.5) / exposed,
        std=np.where(std > 0, std, 1.0),
    )


def tissue_bins(tissue_mask: BoolArray) -> Int64Array:
    """Number of bins that contain tissue at 2, 4, 8 and 16 µm, (4,); independent of orientation.

    Example:
        >>> mask = np.zeros((16, 16), bool)
        >>> mask[:2, :3] = True
        >>> tissue_bins(mask)
        array([6, 2, 1, 1])
    """
    sides = [scale // BIN_UM for scale in SCALES_UM]
    n = len(tissue_mask)
    return np.array([tissue_mask.reshape(n // f, f, n // f, f).any((1, 3)).sum() for f in sides])


def _sums_of_patch(
    dataset: PatchDataset, member: Member
) -> tuple[int, Float64Array, Int64Array, Float64Array, float]:
    """Tokens, token sums (2, D), `tissue_bins`, count sums (2, 4, G) and exposure of a patch.

    The two sums are those of values and of squares. Counts are those of tissue bins; they are whole
    numbers, so their sums are exact in any order.
    """
    patch, n_genes = dataset.patch(member), len(dataset.panel)
    tokens = patch.tokens.reshape(-1, dataset.token_shape[-1]).astype(np.float64)
    counts, mask = dataset.panel_counts(member), patch.tissue_mask
    inside = mask.ravel()[counts.position]
    counts = replace(
        counts,
        gene=counts.gene[inside],
        position=counts.position[inside],
        count=counts.count[inside],
    )
    of_counts = np.empty((2, len(SCALES_UM), n_genes))
    for i, scale in enumerate(SCALES_UM):
        pooled = counts.pooled(scale)
        umis = pooled.count.astype(np.float64)
        of_counts[:, i] = [np.bincount(pooled.gene, x, n_genes) for x in (umis, umis**2)]
    token_sums = np.stack([tokens.sum(0), (tokens**2).sum(0)])
    exposure = float(dataset.exposure(member).sum(dtype=np.float64))
    return len(tokens), token_sums, tissue_bins(mask), of_counts, exposure

"""From 2 µm maps to the coarser scales: rates and counts add, so coarser means summed.

Shape suffixes: B patches, G genes, R = C = bins a side at 2 µm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from virchow_st.types import SCALES_UM


def check_scales(scales_um: Sequence[int]) -> tuple[int, ...]:
    """Scales in increasing order; each has to be 2 µm times a power of two."""
    scales = tuple(sorted(set(scales_um)))
    if not scales or any(s not in (2, 4, 8, 16, 32, 64, 128, 256) for s in scales):
        raise ValueError(f"scales_um: expected sides such as 2, 4, 8, 16; got {tuple(scales_um)}")
    return scales


def pyramid(map_BGRC: Tensor, scales_um: Sequence[int]) -> list[Tensor]:
    """Sum a (B, G, R, C) map of 2 µm bins over squares of each scale, in increasing order."""
    levels, side = [], 2
    for scale in scales_um:
        while side < scale:
            map_BGRC = avg_pool2d(map_BGRC, 2) * 4
            side *= 2
        levels.append(map_BGRC)
    return levels


def spread(levels: Sequence[Tensor], scales_um: Sequence[int]) -> Tensor:
    """Adjoint of `pyramid`: every 2 µm bin gets the sum of the coarser bins that hold it."""
    total, side = levels[-1], scales_um[-1]
    remaining = list(zip(scales_um, levels, strict=True))[:-1]
    while side > 2:
        total = interpolate(total, scale_factor=2, mode="nearest")
        side //= 2
        if remaining and remaining[-1][0] == side:
            total = total + remaining.pop()[1]
    return total


def chosen_scales(by_scale: Tensor, scales_um: Sequence[int]) -> Tensor:
    """Rows of a (4, …) tensor of figures at 2, 4, 8 and 16 µm, for the scales named."""
    return by_scale[[SCALES_UM.index(scale) for scale in scales_um]]


def bins_with_tissue(n_tissue_B1RC: Tensor) -> Tensor:
    """Number of bins of a scale that hold at least one tissue bin, at least 1."""
    return (n_tissue_B1RC > 0).sum().clamp(min=1)


def tissue_bins(mask_BRC: Tensor, scales_um: Sequence[int]) -> Tensor:
    """`bins_with_tissue` of a bool mask at each scale, (S,) int64."""
    levels = pyramid(mask_BRC[:, None].float(), scales_um)
    return torch.stack([bins_with_tissue(level) for level in levels])

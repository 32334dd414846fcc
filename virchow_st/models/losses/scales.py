"""Maps of coarser bins from maps of 2 µm bins; rates and counts are summed, not averaged.

Shape suffixes: B patches, G genes, R = C = bins per side at 2 µm, S scales.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from virchow_st.types import SCALES_UM


def check_scales(scales_um: Sequence[int]) -> tuple[int, ...]:
    """Return the scales in increasing order without repeats.

    Raises:
        ValueError: No scale, or one that is not 2 µm times a power of two, up to 256 µm.

    Example:
        >>> check_scales([8, 2, 2])
        (2, 8)
    """
    scales = tuple(sorted(set(scales_um)))
    if not scales or any(s not in (2, 4, 8, 16, 32, 64, 128, 256) for s in scales):
        raise ValueError(f"scales_um: expected sides such as 2, 4, 8, 16; got {tuple(scales_um)}")
    return scales


def pyramid(map_BGRC: Tensor, scales_um: Sequence[int]) -> list[Tensor]:
    """Sum a map of 2 µm bins over the bins of each scale.

    Args:
        map_BGRC: (B, G, R, C) map of 2 µm bins; R and C are multiples of the coarsest bin.
        scales_um: Sides of the bins in increasing order, µm.

    Returns:
        One map per scale, (B, G, R·2/scale, C·2/scale).

    Example:
        >>> fine, coarse = pyramid(torch.ones(1, 1, 2, 2), (2, 4))
        >>> coarse
        tensor([[[[4.]]]])
    """
    levels, side = [], 2
    for scale in scales_um:
        while side < scale:
            map_BGRC = avg_pool2d(map_BGRC, 2) * 4
            side *= 2
        levels.append(map_BGRC)
    return levels


def spread(levels: Sequence[Tensor], scales_um: Sequence[int]) -> Tensor:
    """Adjoint of `pyramid`: for every 2 µm bin, the sum over scales of the bin that contains it.

    Args:
        levels: One map per scale, as returned by `pyramid`.
        scales_um: Sides of the bins in increasing order, µm.

    Returns:
        (B, G, R, C) map of 2 µm bins.

    Example:
        >>> fine, coarse = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([[[[10.0]]]])
        >>> spread([fine, coarse], (2, 4))
        tensor([[[[11., 12.],
                  [13., 14.]]]])
    """
    total, side = levels[-1], scales_um[-1]
    remaining = list(zip(scales_um, levels, strict=True))[:-1]
    while side > 2:
        total = interpolate(total, scale_factor=2, mode="nearest")
        side //= 2
        if remaining and remaining[-1][0] == side:
            total = total + remaining.pop()[1]
    return total


def chosen_scales(by_scale: Tensor, scales_um: Sequence[int]) -> Tensor:
    """Select the rows of the given scales from a (4, …) tensor of values at 2, 4, 8 and 16 µm.

    Example:
        >>> chosen_scales(torch.tensor([0.2, 0.4, 0.8, 1.6]), (2, 8))
        tensor([0.2000, 0.8000])
    """
    return by_scale[[SCALES_UM.index(scale) for scale in scales_um]]


def tissue_bins(mask_BRC: Tensor, scales_um: Sequence[int]) -> Tensor:
    """Number of bins of each scale that contain tissue, at least 1; (S,) int64.

    Args:
        mask_BRC: (B, R, C) bool, True = tissue.
        scales_um: Sides of the bins in increasing order, µm.

    Example:
        >>> mask = torch.tensor([[[True, False], [False, False]]])
        >>> tissue_bins(mask, (2, 4))
        tensor([1, 1])
    """
    n_bins, side = [], 2
    for scale in scales_um:
        while side < scale:
            mask_BRC = mask_BRC[:, ::2] | mask_BRC[:, 1::2]
            mask_BRC = mask_BRC[..., ::2] | mask_BRC[..., 1::2]
            side *= 2
        n_bins.append(mask_BRC.sum().clamp(min=1))
    return torch.stack(n_bins)

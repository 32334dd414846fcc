"""Plain PyTorch reference of the multi-scale Poisson loss, which the fused loss must equal.

It uses dense counts, `torch.nn.functional.poisson_nll_loss`, sums as `avg_pool2d` times the area,
and autograd. Only tests and benchmarks call it.

Shape suffixes: B patches, G genes, R = C = bins per side at 2 µm, S scales.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, poisson_nll_loss


def plain_poisson(
    output_BGRC: Tensor, counts_BGRC: Tensor, mask_BRC: Tensor, scales_um: Sequence[int]
) -> Tensor:
    """Poisson negative log-likelihood per bin, without ``log k!``, at each scale.

    Args:
        output_BGRC: (B, G, R, C) log λ.
        counts_BGRC: (B, G, R, C) UMIs, in the same dtype.
        mask_BRC: (B, R, C) bool, True = tissue.
        scales_um: Sides of the bins, µm.

    Returns:
        (S,) losses.

    Example:
        >>> counts = torch.tensor([[[[0.0, 2.0], [0.0, 1.0]]]])
        >>> plain_poisson(torch.zeros(1, 1, 2, 2), counts, torch.ones(1, 2, 2) > 0, (2, 4))
        tensor([ 1.0000, -0.1589])
    """
    mask_B1RC = mask_BRC[:, None].to(output_BGRC.dtype)
    rate_BGRC, counts_BGRC = output_BGRC.exp() * mask_B1RC, counts_BGRC * mask_B1RC
    return torch.stack([_nll(rate_BGRC, counts_BGRC, mask_B1RC, s // 2) for s in scales_um])


def saturated_poisson(counts_BGRC: Tensor, mask_BRC: Tensor, scales_um: Sequence[int]) -> Tensor:
    """Minimum of `plain_poisson`, reached where the rates equal the counts, (S,).

    The difference between `plain_poisson` and this minimum is half the Poisson deviance.

    Example:
        >>> counts = torch.tensor([[[[0.0, 2.0], [0.0, 1.0]]]])
        >>> saturated_poisson(counts, torch.ones(1, 2, 2) > 0, (2, 4))
        tensor([ 0.4034, -0.2958])
    """
    mask_B1RC = mask_BRC[:, None].to(counts_BGRC.dtype)
    counts_BGRC = counts_BGRC * mask_B1RC
    return torch.stack([_nll(counts_BGRC, counts_BGRC, mask_B1RC, s // 2) for s in scales_um])


def _nll(rate: Tensor, counts: Tensor, mask: Tensor, factor: int) -> Tensor:
    if factor > 1:
        rate, counts, mask = (avg_pool2d(x, factor) * factor**2 for x in (rate, counts, mask))
    tiny = torch.finfo(rate.dtype).tiny  # makes 0·log 0 equal 0 where there is no tissue
    nll = poisson_nll_loss(rate, counts, log_input=False, eps=tiny, reduction="sum")
    return nll / ((mask > 0).sum() * rate.shape[1])

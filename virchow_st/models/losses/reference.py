"""The multi-scale Poisson loss as one would write it in plain PyTorch; the fast one must equal it.

Dense counts, `torch.nn.functional.poisson_nll_loss`, sums as `avg_pool2d` times the area, autograd.
Only tests and benchmarks call it.

Shape suffixes: B patches, G genes, R = C = bins a side at 2 µm, S scales.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, poisson_nll_loss


def plain_poisson(
    output_BGRC: Tensor, counts_BGRC: Tensor, mask_BRC: Tensor, scales_um: Sequence[int]
) -> Tensor:
    """Poisson negative log-likelihood a bin, without ``log k!``, at each scale, (S,).

    Args:
        output_BGRC: log λ.
        counts_BGRC: UMIs, of the same dtype.
        mask_BRC: bool.
        scales_um: sides of the bins, µm.
    """
    mask_B1RC = mask_BRC[:, None].to(output_BGRC.dtype)
    rate_BGRC, counts_BGRC = output_BGRC.exp() * mask_B1RC, counts_BGRC * mask_B1RC
    return torch.stack([_nll(rate_BGRC, counts_BGRC, mask_B1RC, s // 2) for s in scales_um])


def saturated_poisson(counts_BGRC: Tensor, mask_BRC: Tensor, scales_um: Sequence[int]) -> Tensor:
    """The least that `plain_poisson` can be, where rates are the counts, (S,)."""
    mask_B1RC = mask_BRC[:, None].to(counts_BGRC.dtype)
    counts_BGRC = counts_BGRC * mask_B1RC
    return torch.stack([_nll(counts_BGRC, counts_BGRC, mask_B1RC, s // 2) for s in scales_um])


def _nll(rate: Tensor, counts: Tensor, mask: Tensor, factor: int) -> Tensor:
    if factor > 1:
        rate, counts, mask = (avg_pool2d(x, factor) * factor**2 for x in (rate, counts, mask))
    tiny = torch.finfo(rate.dtype).tiny  # keeps 0·log 0 at 0 where there is no tissue
    nll = poisson_nll_loss(rate, counts, log_input=False, eps=tiny, reduction="sum")
    return nll / ((mask > 0).sum() * rate.shape[1])

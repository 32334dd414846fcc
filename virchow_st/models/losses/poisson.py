"""Multi-scale Poisson loss on raw counts.

Shape suffixes: B patches, G genes, R = C = bins per side at 2 µm, S scales.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from virchow_st.kernels.poisson import MAX_LOG_RATE, MIN_LOG_RATE
from virchow_st.models.losses import fused, fused_gpu
from virchow_st.models.losses.base import Counts, Objective, dense_counts, exposed, genes_of
from virchow_st.models.losses.measured import alike_patches, measured_bins
from virchow_st.models.losses.scales import check_scales, pyramid, spread, tissue_bins


class MultiScalePoisson(Objective):
    """Half the Poisson deviance per gene and bin, at every scale.

    The decoder's output is log λ of 2 µm bins. K is the count and Λ the rate of a coarser bin, each
    summed over its 2 µm tissue bins. The contribution of a bin is ``K·log(K/Λ) - (K - Λ)``: the
    negative log-likelihood up to a constant that depends on the data only, and zero for a perfect
    fit, which GradNorm's loss ratios require (McCullagh & Nelder 1989, § 2.3).

    The counts stay sparse on a CPU (`virchow_st.models.losses.fused`) and, where Triton can build
    its kernels, on a GPU (`virchow_st.models.losses.fused_gpu`); see `implementation_on`.

    Args:
        train_rate: (G,) mean UMIs per 2 µm tissue bin of the training patches, > 0.
        scales_um: Sides of the supervised bins, µm.
    """

    def __init__(self, train_rate: Tensor, scales_um: Sequence[int]) -> None:
        super().__init__()
        self.scales_um = check_scales(scales_um)
        self.register_buffer("train_rate", train_rate.float())
        self.register_buffer("initial_bias", train_rate.float().clamp(min=1e-8).log())

    def rate(self, output_BGRC: Tensor) -> Tensor:
        """Predicted UMIs per 2 µm bin: the exponential of the output."""
        return output_BGRC.float().clamp(MIN_LOG_RATE, MAX_LOG_RATE).exp()

    def forward(
        self,
        output_BGRC: Tensor,
        counts: Counts,
        exposure_BRC: Tensor,
        measured_BG: Tensor | None = None,
    ) -> Tensor:
        """Half the deviance per bin at each scale, (S,); see `Objective.forward`."""
        output_BGRC = output_BGRC.to(torch.promote_types(output_BGRC.dtype, torch.float32))
        output_BGRC, tissue_mask_BRC = exposed(output_BGRC, exposure_BRC)
        count_bins, half_deviance_of = implementation_on(output_BGRC.device)
        n_bins_S = measured_bins(
            count_bins, tissue_mask_BRC, self.scales_um, measured_BG, output_BGRC.shape[1]
        )
        if measured_BG is None:
            return half_deviance_of(output_BGRC, counts, tissue_mask_BRC, n_bins_S, self.scales_um)
        losses_S = output_BGRC[:0].sum().expand(len(self.scales_um))  # 0, with a gradient
        for group in alike_patches(measured_BG):
            patches, genes = (i.to(output_BGRC.device) for i in (group.patches, group.genes))
            losses_S = losses_S + half_deviance_of(
                output_BGRC[patches[:, None], genes],
                genes_of(counts, group.genes, group.patches),
                tissue_mask_BRC[patches],
                n_bins_S,
                self.scales_um,
            )
        return losses_S


def implementation_on(device: torch.device) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Functions that count the bins with tissue and compute half the deviance on a device.

    On a CPU and on a GPU with Triton the counts stay sparse. On a GPU where Triton cannot build
    kernels, torch computes the loss from dense counts; `fused_gpu.missing` finds this out before
    any kernel is launched, and ``vst doctor`` shows the reason.

    Example:
        >>> _, half_deviance_of = implementation_on(torch.device("cpu"))
        >>> half_deviance_of.__name__
        'fused_half_deviance'
    """
    if device.type == "cpu":
        return tissue_bins, fused.fused_half_deviance
    if fused_gpu.missing():
        return tissue_bins, dense_half_deviance
    return fused_gpu.tissue_bins, fused_gpu.fused_half_deviance


def dense_half_deviance(
    output_BGRC: Tensor,
    counts: Counts,
    mask_BRC: Tensor,
    n_bins_S: Tensor,
    scales_um: Sequence[int],
) -> Tensor:
    """Half the deviance per bin at each scale, (S,), from sparse counts made dense on the device.

    See `half_deviance` for the arguments; ``mask_BRC`` is bool here.

    Example:
        >>> import numpy as np
        >>> from virchow_st.models.losses.targets import BatchCounts
        >>> counts = BatchCounts.of_dense(np.array([[[[0, 2], [0, 1]]]]))
        >>> mask, n_bins = torch.ones(1, 2, 2, dtype=torch.bool), torch.tensor([4, 1])
        >>> dense_half_deviance(torch.zeros(1, 1, 2, 2), counts, mask, n_bins, (2, 4))
        tensor([0.5966, 0.1370])
    """
    counts_BGRC = dense_counts(counts, output_BGRC.device).to(output_BGRC.dtype)
    mask_B1RC = mask_BRC[:, None].to(output_BGRC.dtype)
    return half_deviance(output_BGRC, counts_BGRC, mask_B1RC, n_bins_S, scales_um)


def half_deviance(
    output_BGRC: Tensor,
    counts_BGRC: Tensor,
    mask_B1RC: Tensor,
    n_bins_S: Tensor,
    scales_um: Sequence[int],
) -> Tensor:
    """Half the Poisson deviance per bin at each scale, with torch operations on any device.

    Args:
        output_BGRC: (B, G, R, C) log λ, float32 or float64; the other maps have the same dtype.
        counts_BGRC: (B, G, R, C) UMIs.
        mask_B1RC: (B, 1, R, C), 1 in tissue and 0 outside.
        n_bins_S: (S,) number of bins that the sum of each scale is divided by.
        scales_um: Sides of the bins in increasing order, µm.

    Returns:
        (S,) losses.

    Example:
        Four bins of rate 1 with counts 0, 2, 0, 1; at 4 µm they are one bin of rate 4 and count 3:

        >>> counts = torch.tensor([[[[0.0, 2.0], [0.0, 1.0]]]])
        >>> mask, n_bins = torch.ones(1, 1, 2, 2), torch.tensor([4, 1])
        >>> half_deviance(torch.zeros(1, 1, 2, 2), counts, mask, n_bins, (2, 4))
        tensor([0.5966, 0.1370])
    """
    return _HalfDeviance.apply(output_BGRC, counts_BGRC, mask_B1RC, n_bins_S, scales_um)


class _HalfDeviance(torch.autograd.Function):
    """Autograd function with loss and gradient in closed form.

    ``∂L_s/∂log λ = λ·(1 - K_s/Λ_s)/n_s``, where K_s and Λ_s are count and rate of the scale-s bin
    that contains the 2 µm bin. The same expression is used where the clamp is active, so that a
    diverged log-rate is still pulled back. Logarithms are computed only for bins with counts (about
    5 %), and the gradient of a single scale, which GradNorm needs, does not recompute the sums over
    coarser bins.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output_BGRC: Tensor,
        counts_BGRC: Tensor,
        mask_B1RC: Tensor,
        n_bins_S: Tensor,
        scales: Any,
    ) -> Tensor:
        rate = output_BGRC.clamp(MIN_LOG_RATE, MAX_LOG_RATE).exp_().mul_(mask_B1RC)
        rates = pyramid(rate, scales)
        counts = pyramid(counts_BGRC * mask_B1RC, scales)
        losses = []
        for r, k, n in zip(rates, counts, n_bins_S, strict=True):
            seen = k.nonzero(as_tuple=True)
            k_seen = k[seen]
            surprise = (k_seen * (k_seen / r[seen]).log()).sum()
            losses.append((surprise - k_seen.sum() + r.sum()) / n)
        ctx.rate, ctx.scales = rate, scales
        ctx.rates, ctx.counts, ctx.n_bins = rates, counts, n_bins_S
        return torch.stack(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_S: Tensor) -> tuple[Tensor | None, ...]:
        levels = [
            (g / n) * (1 - k / r.clamp(min=torch.finfo(r.dtype).tiny))
            for g, n, k, r in zip(grad_S, ctx.n_bins, ctx.counts, ctx.rates, strict=True)
        ]
        return spread(levels, ctx.scales) * ctx.rate, None, None, None, None

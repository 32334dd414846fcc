"""Multi-scale Poisson loss on raw counts.

Shape suffixes: B patches, G genes, R = C = bins a side at 2 µm, S scales.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from virchow_st.kernels.poisson import MAX_LOG_RATE, MIN_LOG_RATE
from virchow_st.models.losses import fused, fused_gpu
from virchow_st.models.losses.base import Counts, Objective, dense_counts
from virchow_st.models.losses.scales import check_scales, pyramid, spread, tissue_bins


class MultiScalePoisson(Objective):
    """Half the Poisson deviance per gene and bin, at every scale.

    The decoder's output is log λ of 2 µm bins. With k the counts summed over the tissue bins of a
    coarser bin and λ the rates summed over the same bins, a bin contributes
    ``k·log(k/λ) - (k - λ)``: the negative log-likelihood up to a constant of the data, and zero
    for a perfect fit, which GradNorm's loss ratios need (McCullagh & Nelder 1989, § 2.3).

    The counts stay sparse, on a CPU (`virchow_st.models.losses.fused`) and on a GPU
    (`virchow_st.models.losses.fused_gpu`); `way_on` says where they do not.

    Args:
        train_rate: (G,) mean UMIs of a tissue bin in training, > 0.
        scales_um: sides of the bins to supervise, µm.
    """

    def __init__(self, train_rate: Tensor, scales_um: Sequence[int]) -> None:
        super().__init__()
        self.scales_um = check_scales(scales_um)
        self.register_buffer("train_rate", train_rate.float())
        self.register_buffer("initial_bias", train_rate.float().clamp(min=1e-8).log())

    def rate(self, output_BGRC: Tensor) -> Tensor:
        """Expected UMIs per 2 µm bin: the exponential of the output."""
        return output_BGRC.float().clamp(MIN_LOG_RATE, MAX_LOG_RATE).exp()

    def forward(self, output_BGRC: Tensor, counts: Counts, tissue_mask_BRC: Tensor) -> Tensor:
        """Half the deviance at each scale, (S,); see `Objective`."""
        output_BGRC = output_BGRC.to(torch.promote_types(output_BGRC.dtype, torch.float32))
        count_bins, half_deviance_of = way_on(output_BGRC.device)
        n_bins_S = count_bins(tissue_mask_BRC, self.scales_um) * output_BGRC.shape[1]
        return half_deviance_of(output_BGRC, counts, tissue_mask_BRC, n_bins_S, self.scales_um)


def way_on(device: torch.device) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """What counts the bins with tissue on a device, and what computes half the deviance there.

    `fused` and `fused_gpu` leave the counts sparse. On a GPU where Triton cannot build kernels,
    which `fused_gpu.missing` knows before any is started and ``vst doctor`` shows, torch takes
    the counts dense.
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
    """Half the deviance a bin at each scale, (S,), with the counts laid out dense on the device."""
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
    """Half the deviance a bin at each scale, (S,), with torch on any device.

    Args:
        output_BGRC: log λ, float32 or float64; the other maps are of its dtype.
        counts_BGRC: UMIs.
        mask_B1RC: 1 in tissue, 0 outside.
        n_bins_S: what each scale's sum is divided by.
        scales_um: in increasing order.
    """
    return _HalfDeviance.apply(output_BGRC, counts_BGRC, mask_B1RC, n_bins_S, scales_um)


class _HalfDeviance(torch.autograd.Function):
    """The loss and its gradient in closed form.

    ``∂L_s/∂log λ = λ·(1 - K_s/Λ_s)/n_s`` with K_s, Λ_s the sums of the coarse bin that holds the
    bin; beyond the clamp too, so that a rate that ran away is still pulled back. Logarithms are
    taken only where counts are, one bin in twenty, and the gradient of each scale alone, which
    GradNorm asks for, costs no pass through the pyramid.
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

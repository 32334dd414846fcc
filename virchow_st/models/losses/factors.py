"""Multi-scale Poisson deviance of a rate field of factors, λ = W·h, from sparse counts.

Shape suffixes: B patches, G genes, K factors, R = C = bins per side at 2 µm, S scales.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from virchow_st.models.losses.base import Counts
from virchow_st.models.losses.factors_cpu import FusedFactors
from virchow_st.models.losses.factors_gpu import ScatteredFactors


def factor_half_deviance(
    log_factors_BKRC: Tensor,
    loadings_GK: Tensor,
    counts: Counts,
    mask_BRC: Tensor,
    n_bins_S: Tensor,
    scales_um: Sequence[int],
    measured_BG: Tensor | None = None,
) -> Tensor:
    """Half the Poisson deviance per bin at each scale, of rates that are sums of factors.

    The rate of gene g in a 2 µm tissue bin x is ``λ_g(x) = Σ_k W_gk·h_k(x)``, where h is the
    exponential of the log factors, clamped as log-rates are. Y is the count and Λ the rate of a
    coarser bin, each summed over its 2 µm tissue bins, and a bin contributes
    ``Y·log(Y/Λ) - (Y - Λ)`` (McCullagh & Nelder 1989, § 2.3). The result equals that of
    `virchow_st.models.losses.poisson.half_deviance` for log λ, without any array of genes × bins:
    ``ΣΛ`` is a sum over factors of products of sums, and single rates are computed for non-zero
    counts only. Time and memory are O(non-zeros · K) and O(non-zeros + B·K·R·C + G·K).

    In logarithms and quotients Λ is at least ``exp(MIN_LOG_RATE)`` = 2e-9 UMIs, so that loadings
    may be 0. The gradients are exact up to these two limits, at which they are those of the
    unlimited expression. They are differentiable once.

    On a CPU, numba kernels compute it with as many threads as torch uses, and the result does not
    depend on their number. On other devices, torch operations do; sums of the gradients on a GPU
    then are in no fixed order.

    Args:
        log_factors_BKRC: (B, K, R, C) log h, UMIs per 2 µm bin; R and C are powers of two and hold
            a bin of the coarsest scale.
        loadings_GK: (G, K) W ≥ 0, on the same device.
        counts: Sparse UMI counts (B, G, R, C), on the CPU or on the device of the factors.
        mask_BRC: (B, R, C) bool, True = tissue; counts outside are ignored.
        n_bins_S: (S,) number of bins that the sum of each scale is divided by, summed over genes.
        scales_um: Sides of the bins in increasing order, µm.
        measured_BG: (B, G) bool, True if the patch's store measured the gene; other genes
            contribute neither rates nor counts. None if every store measured every gene.

    Returns:
        (S,) losses ≥ 0, in the dtype of the log factors but at least float32.

    Raises:
        ValueError: Shapes do not fit together.

    Example:
        Four bins of rate 0.5 + 0.5 with counts 0, 2, 0, 1; at 4 µm one bin of rate 4 and count 3:

        >>> import numpy as np
        >>> from virchow_st.models.losses.targets import BatchCounts
        >>> counts = BatchCounts.of_dense(np.array([[[[0, 2], [0, 1]]]]))
        >>> mask, n_bins = torch.ones(1, 2, 2, dtype=torch.bool), torch.tensor([4, 1])
        >>> log_factors, loadings = torch.zeros(1, 2, 2, 2), torch.full((1, 2), 0.5)
        >>> factor_half_deviance(log_factors, loadings, counts, mask, n_bins, (2, 4))
        tensor([0.5966, 0.1370])
    """
    B, K, R, C = log_factors_BKRC.shape
    G = len(loadings_GK)
    wanted = {"counts": (B, G, R, C), "loadings": (G, K), "mask": (B, R, C), "measured": (B, G)}
    found = {"counts": counts.shape, "loadings": loadings_GK.shape, "mask": mask_BRC.shape}
    if measured_BG is not None:
        found["measured"] = measured_BG.shape
    for name, shape in found.items():
        if tuple(shape) != wanted[name]:
            raise ValueError(f"{name}: expected shape {wanted[name]}, got {tuple(shape)}")
    if min(R, C) < scales_um[-1] // 2 or R & (R - 1) or C & (C - 1):
        raise ValueError(
            f"log factors: expected sides that are powers of two and hold bins of {scales_um[-1]} "
            f"µm; got {R} × {C} bins"
        )
    dtype = torch.promote_types(log_factors_BKRC.dtype, torch.float32)
    log_factors_BKRC, loadings_GK = log_factors_BKRC.to(dtype), loadings_GK.to(dtype)
    fixed = loadings_GK.detach()
    field = implementation_on(log_factors_BKRC.device)(
        log_factors_BKRC.detach(), fixed, counts, mask_BRC, tuple(scales_um), measured_BG
    )
    losses_S = (field.sums_S / n_bins_S).to(dtype)
    parts = (
        (log_factors_BKRC, losses_S, field.log_factor_gradient),
        (loadings_GK, torch.zeros_like(losses_S), field.loading_gradient),
    )
    of_factors, of_loadings = (_WithGradient.apply(*part, n_bins_S, fixed) for part in parts)
    return of_factors + of_loadings


def implementation_on(device: torch.device) -> type[FusedFactors] | type[ScatteredFactors]:
    """Class that computes deviances and gradients on a device.

    Example:
        >>> implementation_on(torch.device("cpu")).__name__
        'FusedFactors'
    """
    return FusedFactors if device.type == "cpu" else ScatteredFactors


class _WithGradient(torch.autograd.Function):
    """Returns given losses as if computed from a tensor, whose gradient a function gives.

    Factors and loadings each get a call of their own, and the results are added: where only the
    gradient of one of them is asked for, as by GradNorm, that of the other is not computed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        losses_S: Tensor,
        gradient: Callable[[Tensor], Tensor],
        n_bins_S: Tensor,
        loadings_GK: Tensor,
    ) -> Tensor:
        ctx.gradient = gradient
        ctx.save_for_backward(n_bins_S, loadings_GK)  # refuses loadings that changed since
        return losses_S.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_S: Tensor) -> tuple[Tensor | None, ...]:
        n_bins_S, _ = ctx.saved_tensors
        return ctx.gradient(grad_S / n_bins_S), None, None, None, None

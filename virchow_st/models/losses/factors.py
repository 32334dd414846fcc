"""Multi-scale Poisson deviance of a rate field of factors, λ = W·h, from sparse counts.

Shape suffixes: B patches, G genes, K factors, R = C = bins per side at 2 µm, T bins of all levels,
S scales, N non-zeros, M = B·G maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from virchow_st.kernels import factors as kernels
from virchow_st.kernels.levels import level_starts
from virchow_st.models.losses import factors_gpu
from virchow_st.models.losses.base import Counts
from virchow_st.models.losses.fused import side_by_side
from virchow_st.models.losses.targets import BatchCounts


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
    exponential of the log factors, clamped as log-rates are. K is the count and Λ the rate of a
    coarser bin, each summed over its 2 µm tissue bins, and a bin contributes
    ``K·log(K/Λ) - (K - Λ)`` (McCullagh & Nelder 1989, § 2.3). The result equals that of
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
        counts: Sparse UMI counts (B, G, R, C); `DeviceCounts` only if the factors are on a GPU.
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
    return implementation_on(log_factors_BKRC.device)(
        log_factors_BKRC.to(dtype),
        loadings_GK.to(dtype),
        counts,
        mask_BRC,
        n_bins_S,
        tuple(scales_um),
        measured_BG,
    )


def implementation_on(device: torch.device) -> Callable[..., Tensor]:
    """Function that computes `factor_half_deviance` on a device, from arguments that fit.

    Example:
        >>> implementation_on(torch.device("cpu")).__name__, implementation_on(
        ...     torch.device("cuda")
        ... ).__name__
        ('fused_half_deviance', 'scattered_half_deviance')
    """
    return fused_half_deviance if device.type == "cpu" else factors_gpu.scattered_half_deviance


def fused_half_deviance(
    log_factors_BKRC: Tensor,
    loadings_GK: Tensor,
    counts: BatchCounts,
    mask_BRC: Tensor,
    n_bins_S: Tensor,
    scales_um: tuple[int, ...],
    measured_BG: Tensor | None,
) -> Tensor:
    """`factor_half_deviance` on a CPU, with the numba kernels."""
    if measured_BG is None:
        measured_BG = torch.ones(counts.shape[:2], dtype=torch.bool)
    return _Fused.apply(
        log_factors_BKRC, loadings_GK, counts, mask_BRC, n_bins_S, scales_um, measured_BG
    )


class _Fused(torch.autograd.Function):
    """Autograd function; it saves the factors of all levels and a quotient per count and scale.

    With these, the gradient of a single scale, which GradNorm needs, repeats nothing.
    """

    @staticmethod
    def forward(
        ctx: Any,
        log_factors_BKRC: Tensor,
        loadings_GK: Tensor,
        counts: BatchCounts,
        mask_BRC: Tensor,
        n_bins_S: Tensor,
        scales_um: tuple[int, ...],
        measured_BG: Tensor,
    ) -> Tensor:
        B, K, R, C = log_factors_BKRC.shape
        levels_S = np.array([scale.bit_length() - 2 for scale in scales_um])  # 2 µm is level 0
        log_factors = log_factors_BKRC.detach().contiguous().numpy()
        loadings = loadings_GK.detach().contiguous().numpy()
        mask, measured = mask_BRC.contiguous().numpy(), measured_BG.contiguous().numpy()
        n_levels = int(levels_S[-1]) + 1
        starts = level_starts(R, C, n_levels)

        factors_BTK = np.empty((B, starts[-1], K), log_factors.dtype)
        side_by_side(
            lambda first, last: kernels.factor_levels(
                log_factors, mask, n_levels, first, last, factors_BTK
            ),
            B * (R >> (n_levels - 1)),
        )
        lists = counts.start, counts.position
        sums_MS = np.empty((len(counts.start) - 1, len(levels_S)))
        ratio_SN = np.empty((len(levels_S), len(counts.count)), log_factors.dtype)
        inputs = (factors_BTK, loadings, mask, measured, *lists, counts.count, levels_S)
        side_by_side(
            lambda first, last: kernels.factor_half_deviances(
                *inputs, first, last, sums_MS, ratio_SN
            ),
            len(sums_MS),
        )
        factor_sums_BK = factors_BTK[:, starts[-2] :].sum(1, dtype=np.float64)
        loading_sums_BK = measured.astype(np.float64) @ loadings
        n_expected = (factor_sums_BK * loading_sums_BK).sum()  # the same at every scale

        ctx.save_for_backward(loadings_GK, mask_BRC, n_bins_S, measured_BG)
        ctx.saved = factors_BTK, ratio_SN, factor_sums_BK, loading_sums_BK, levels_S, lists
        ctx.shape = B, K, R, C
        sums_S = torch.from_numpy(sums_MS.sum(0) + n_expected)
        return (sums_S / n_bins_S).to(log_factors_BKRC.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_S: Tensor) -> tuple[Tensor | None, ...]:
        loadings_GK, mask_BRC, n_bins_S, measured_BG = ctx.saved_tensors
        factors_BTK, ratio_SN, factor_sums_BK, loading_sums_BK, levels_S, lists = ctx.saved
        dtype, loadings = factors_BTK.dtype, loadings_GK.contiguous().numpy()
        shared = *lists, ratio_SN, levels_S, (grad_S / n_bins_S).numpy().astype(dtype)
        of_factors, of_loadings = None, None
        if ctx.needs_input_grad[0]:
            out_BKRC = np.empty(ctx.shape, dtype)
            sums = loading_sums_BK.astype(dtype)
            side_by_side(
                lambda first, last: kernels.log_factor_gradient(
                    factors_BTK, loadings, sums, *shared, first, last, out_BKRC
                ),
                len(out_BKRC),
            )
            of_factors = torch.from_numpy(out_BKRC)
        if ctx.needs_input_grad[1]:
            out_GK = np.empty_like(loadings)
            totals = factor_sums_BK.astype(dtype)
            mask, measured = mask_BRC.contiguous().numpy(), measured_BG.contiguous().numpy()
            side_by_side(
                lambda first, last: kernels.loading_gradient(
                    factors_BTK, totals, mask, measured, *shared, first, last, out_GK
                ),
                len(out_GK),
            )
            of_loadings = torch.from_numpy(out_GK)
        return of_factors, of_loadings, None, None, None, None, None

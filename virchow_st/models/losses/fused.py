"""Multi-scale Poisson deviance on a CPU from sparse counts, with the numba kernels.

Shape suffixes: B patches, G genes, R = C = bins per side at 2 µm, M = B·G maps, L levels, S scales.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from virchow_st.kernels import poisson as kernels
from virchow_st.kernels.levels import level_starts
from virchow_st.models.losses.targets import BatchCounts


def fused_half_deviance(
    output_BGRC: Tensor,
    counts: BatchCounts,
    mask_BRC: Tensor,
    n_bins_S: Tensor,
    scales_um: Sequence[int],
) -> Tensor:
    """Half the Poisson deviance per bin at each scale, from sparse counts on a CPU.

    The result equals `virchow_st.models.losses.poisson.half_deviance` of the dense counts.

    Args:
        output_BGRC: (B, G, R, C) log λ, float32 or float64, on the CPU.
        counts: Sparse UMI counts of the same shape.
        mask_BRC: (B, R, C) bool, True = tissue.
        n_bins_S: (S,) number of bins that the sum of each scale is divided by.
        scales_um: Sides of the bins in increasing order, µm.

    Returns:
        (S,) losses in the dtype of the output.

    Example:
        >>> counts = BatchCounts.of_dense(np.array([[[[0, 2], [0, 1]]]]))
        >>> mask, n_bins = torch.ones(1, 2, 2, dtype=torch.bool), torch.tensor([4, 1])
        >>> fused_half_deviance(torch.zeros(1, 1, 2, 2), counts, mask, n_bins, (2, 4))
        tensor([0.5966, 0.1370])
    """
    assert tuple(output_BGRC.shape) == counts.shape, f"{tuple(output_BGRC.shape)} {counts.shape}"
    return _Fused.apply(output_BGRC, counts, mask_BRC, n_bins_S, scales_um)


class _Fused(torch.autograd.Function):
    """Autograd function; saves the decoder output and count/rate of the bins above 2 µm.

    These take a third of the output's memory. Backward recomputes the rates of 2 µm bins, which
    takes as long as reading them would, and neither pools nor divides again: GradNorm asks for the
    gradient of every scale.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output_BGRC: Tensor,
        counts: BatchCounts,
        mask_BRC: Tensor,
        n_bins_S: Tensor,
        scales_um: Sequence[int],
    ) -> Tensor:
        ctx.counts = counts
        ctx.levels = [scale.bit_length() - 2 for scale in scales_um]  # 2 µm is level 0
        inputs = _inputs(output_BGRC, mask_BRC, counts)
        M, R, C = inputs[0].shape
        n_levels = ctx.levels[-1] + 1
        sums_ML = np.empty((M, n_levels))
        n_coarse = level_starts(R, C, n_levels)[-1] - R * C
        quotients = np.empty((M, n_coarse), inputs[0].dtype)
        side_by_side(
            lambda first, last: kernels.half_deviances(*inputs, first, last, sums_ML, quotients), M
        )
        ctx.save_for_backward(output_BGRC, mask_BRC, n_bins_S, torch.from_numpy(quotients))
        sums_S = torch.from_numpy(sums_ML.sum(0)[ctx.levels])
        return (sums_S / n_bins_S).to(output_BGRC.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_S: Tensor) -> tuple[Tensor | None, ...]:
        output_BGRC, mask_BRC, n_bins_S, quotients = ctx.saved_tensors
        inputs = _inputs(output_BGRC, mask_BRC, ctx.counts)
        weights_L = np.zeros(ctx.levels[-1] + 1, inputs[0].dtype)
        weights_L[ctx.levels] = (grad_S / n_bins_S).numpy()
        out_MRC = np.empty_like(inputs[0])
        side_by_side(
            lambda first, last: kernels.half_deviance_gradient(
                *inputs, quotients.numpy(), weights_L, first, last, out_MRC
            ),
            len(out_MRC),
        )
        return torch.from_numpy(out_MRC).view(output_BGRC.shape), None, None, None, None


def _inputs(output_BGRC: Tensor, mask_BRC: Tensor, counts: BatchCounts) -> tuple[Any, ...]:
    B, G, R, C = counts.shape
    maps_MRC = output_BGRC.detach().contiguous().numpy().reshape(B * G, R, C)
    return maps_MRC, mask_BRC.contiguous().numpy(), counts.start, counts.position, counts.count


def side_by_side(call: Callable[[int, int], None], n_maps: int) -> None:
    """Divide maps, or other independent parts, among as many threads as torch uses.

    Args:
        call: Computes the half-open range of parts that it is given; releases the GIL.
        n_maps: Number of parts.
    """
    n_threads = min(torch.get_num_threads(), n_maps)
    if n_threads <= 1:
        call(0, n_maps)
        return
    ends = [n_maps * i // n_threads for i in range(n_threads + 1)]
    with ThreadPoolExecutor(n_threads - 1) as pool:
        others = pool.map(call, ends[1:-1], ends[2:])
        call(0, ends[1])  # this thread takes a share instead of waiting
        list(others)  # raises if one of the calls raised

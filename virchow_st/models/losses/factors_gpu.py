"""Multi-scale Poisson deviance of a rate field of factors, with torch operations on any device.

Shape suffixes: B patches, G genes, K factors, R = C = bins per side at 2 µm, S scales, N non-zeros,
X bins of all patches at a scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from virchow_st.kernels.factors import MIN_RATE
from virchow_st.kernels.poisson import MAX_LOG_RATE, MIN_LOG_RATE
from virchow_st.models.losses.base import Counts, on_device
from virchow_st.models.losses.scales import pyramid, spread

_CHUNK = 1 << 18  # counts whose K factors and loadings are gathered at a time: 67 MB each at K = 64


def scattered_half_deviance(
    log_factors_BKRC: Tensor,
    loadings_GK: Tensor,
    counts: Counts,
    mask_BRC: Tensor,
    n_bins_S: Tensor,
    scales_um: tuple[int, ...],
    measured_BG: Tensor | None,
) -> Tensor:
    """`virchow_st.models.losses.factors.factor_half_deviance` by gathering and scattering."""
    there = on_device(counts, log_factors_BKRC.device)
    _, G, R, C = there.shape
    n = len(there.count)
    maps = torch.arange(len(there.start) - 1, device=there.count.device)
    map_N = torch.repeat_interleave(maps, there.start.diff(), output_size=n)
    position_N = there.position.long()
    patch_N, gene_N = map_N // G, map_N % G
    used_N = mask_BRC.reshape(-1)[patch_N * (R * C) + position_N]
    if measured_BG is None:
        measured_BG = torch.ones(there.shape[:2], dtype=torch.bool, device=maps.device)
    used_N = used_N & measured_BG.reshape(-1)[map_N]
    count_N = there.count * used_N
    row_N, col_N = position_N // C, position_N % C
    bin_SN = []
    for factor in (scale // 2 for scale in scales_um):
        width = C // factor
        bins = (R // factor) * width
        bin_SN.append(patch_N * bins + row_N // factor * width + col_N // factor)
    return _Scattered.apply(
        log_factors_BKRC, loadings_GK, gene_N, torch.stack(bin_SN), count_N, mask_BRC, n_bins_S,
        scales_um, measured_BG,
    )  # fmt: skip


class _Scattered(torch.autograd.Function):
    """Autograd function; it saves the factors of all scales and a quotient per count and scale."""

    @staticmethod
    def forward(
        ctx: Any,
        log_factors_BKRC: Tensor,
        loadings_GK: Tensor,
        gene_N: Tensor,
        bin_SN: Tensor,
        count_N: Tensor,
        mask_BRC: Tensor,
        n_bins_S: Tensor,
        scales_um: tuple[int, ...],
        measured_BG: Tensor,
    ) -> Tensor:
        dtype = log_factors_BKRC.dtype
        h_BKRC = log_factors_BKRC.clamp(MIN_LOG_RATE, MAX_LOG_RATE).exp_().mul_(mask_BRC[:, None])
        factors_XK = [_by_bin(level) for level in pyramid(h_BKRC, scales_um)]
        ratio_SN = torch.empty(bin_SN.shape, dtype=dtype, device=gene_N.device)
        sums = []
        for bin_N, factors, ratio_N in zip(bin_SN, factors_XK, ratio_SN, strict=True):
            surprise = _surprise_of_saturated(gene_N, bin_N, count_N, len(loadings_GK))
            for part in _parts(len(gene_N)):
                rate = (loadings_GK[gene_N[part]] * factors[bin_N[part]]).sum(1).clamp(MIN_RATE)
                k = count_N[part].to(dtype)
                ratio_N[part] = k / rate
                # The rate of an ignored count may be 0 or NaN, and takes no part.
                surprise -= torch.where(k > 0, k * rate.log(), 0).sum(dtype=torch.float64)
            sums.append(surprise)
        factor_sums_BK = h_BKRC.sum((2, 3), dtype=torch.float64)
        loading_sums_BK = measured_BG.double() @ loadings_GK.double()
        n_expected = (factor_sums_BK * loading_sums_BK).sum()
        ctx.save_for_backward(
            h_BKRC, loadings_GK, gene_N, bin_SN, ratio_SN, n_bins_S, measured_BG,
            factor_sums_BK.to(dtype), loading_sums_BK.to(dtype), *factors_XK,
        )  # fmt: skip
        ctx.scales = scales_um
        return ((torch.stack(sums) + n_expected) / n_bins_S).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_S: Tensor) -> tuple[Tensor | None, ...]:
        h_BKRC, loadings_GK, gene_N, bin_SN, ratio_SN, n_bins_S, measured_BG, *rest = (
            ctx.saved_tensors
        )
        factor_sums_BK, loading_sums_BK, *factors_XK = rest
        weights_S = (grad_S / n_bins_S).to(h_BKRC.dtype)
        active = [s for s, weight in enumerate(weights_S.tolist()) if weight != 0]  # waits
        of_factors, of_loadings = None, None
        if ctx.needs_input_grad[0]:
            pulled = []
            for s in active:
                level_XK = torch.zeros_like(factors_XK[s])
                for part in _parts(len(gene_N)):
                    scaled = loadings_GK[gene_N[part]] * (weights_S[s] * ratio_SN[s, part, None])
                    level_XK.index_add_(0, bin_SN[s, part], scaled)
                pulled.append(_by_factor(level_XK, h_BKRC.shape, ctx.scales[s]))
            pushed_BK11 = (weights_S.sum() * loading_sums_BK)[:, :, None, None]
            if active:
                pushed_BK11 = pushed_BK11 - spread(pulled, [ctx.scales[s] for s in active])
            of_factors = h_BKRC * pushed_BK11
        if ctx.needs_input_grad[1]:
            of_loadings = weights_S.sum() * (measured_BG.to(h_BKRC.dtype).T @ factor_sums_BK)
            for s in active:
                for part in _parts(len(gene_N)):
                    scaled = factors_XK[s][bin_SN[s, part]] * (
                        weights_S[s] * ratio_SN[s, part, None]
                    )
                    of_loadings.index_add_(0, gene_N[part], scaled, alpha=-1)
        return of_factors, of_loadings, *([None] * 7)


def _surprise_of_saturated(gene_N: Tensor, bin_N: Tensor, count_N: Tensor, n_genes: int) -> Tensor:
    """``Σ K·log K - K`` over the bins of a scale and genes, where K sums the counts; float64."""
    key_N, order_N = (bin_N * n_genes + gene_N).sort()
    of_N = torch.zeros_like(key_N)  # index of each distinct key, in order
    of_N[1:] = (key_N[1:] != key_N[:-1]).cumsum(0)
    sums_N = torch.zeros(len(key_N), dtype=torch.float64, device=key_N.device)
    sums_N.index_add_(0, of_N, count_N[order_N].double())
    return (torch.xlogy(sums_N, sums_N) - sums_N).sum()


def _parts(n: int) -> Iterator[slice]:
    return (slice(first, first + _CHUNK) for first in range(0, n, _CHUNK))


def _by_bin(map_BKRC: Tensor) -> Tensor:
    """Copy with the factors of a bin side by side, (B·R·C, K)."""
    return map_BKRC.permute(0, 2, 3, 1).reshape(-1, map_BKRC.shape[1])


def _by_factor(map_XK: Tensor, shape: torch.Size, scale: int) -> Tensor:
    """View as maps of a scale, (B, K, R·2/scale, C·2/scale); shape is that of 2 µm."""
    B, K, R, C = shape
    return map_XK.view(B, R * 2 // scale, C * 2 // scale, K).permute(0, 3, 1, 2)

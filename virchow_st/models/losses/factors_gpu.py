"""Multi-scale Poisson deviance of a rate field of factors, with torch operations on any device.

Shape suffixes: B patches, G genes, K factors, R = C = bins per side at 2 µm, S scales, N non-zeros,
X bins of all patches at a scale.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from virchow_st.kernels.factors import MIN_RATE
from virchow_st.kernels.poisson import MAX_LOG_RATE, MIN_LOG_RATE
from virchow_st.models.losses.base import Counts, on_device
from virchow_st.models.losses.scales import pyramid, spread

_CHUNK = 1 << 18  # counts whose K factors and loadings are gathered at a time: 67 MB each at K = 64


class ScatteredFactors:
    """Deviances of a batch, and what their gradients need, by gathering and scattering with torch.

    A few counts at a time (`_CHUNK`) bound the memory. On a GPU the sums of the gradients are in no
    fixed order, and asking for a gradient waits once, to skip scales of weight 0.

    Args:
        log_factors_BKRC: (B, K, R, C) log h, float32 or float64.
        loadings_GK: (G, K) W, of the same dtype, on the same device.
        counts: Sparse UMI counts (B, G, R, C).
        mask_BRC: (B, R, C) bool, True = tissue.
        scales_um: Sides of the bins in increasing order, µm.
        measured_BG: (B, G) bool, or None if every gene was measured.

    Attributes:
        sums_S: (S,) float64 half deviances, summed over bins and genes.
    """

    sums_S: Tensor

    def __init__(
        self,
        log_factors_BKRC: Tensor,
        loadings_GK: Tensor,
        counts: Counts,
        mask_BRC: Tensor,
        scales_um: tuple[int, ...],
        measured_BG: Tensor | None,
    ) -> None:
        self.scales, self.loadings_GK = scales_um, loadings_GK
        clamped_BKRC = log_factors_BKRC.clamp(MIN_LOG_RATE, MAX_LOG_RATE)
        self.h_BKRC = clamped_BKRC.exp_().mul_(mask_BRC[:, None])
        self.factors_XK = [_by_bin(level) for level in pyramid(self.h_BKRC, scales_um)]

        there = on_device(counts, log_factors_BKRC.device)
        B, G, R, C = there.shape
        maps = torch.arange(B * G, device=there.count.device)
        map_N = torch.repeat_interleave(maps, there.start.diff(), output_size=len(there.count))
        position_N = there.position.long()
        patch_N, self.gene_N = map_N // G, map_N % G
        if measured_BG is None:
            measured_BG = torch.ones(B, G, dtype=torch.bool, device=maps.device)
        self.measured_BG = measured_BG
        tissue_N = mask_BRC.reshape(-1)[patch_N * (R * C) + position_N]
        count_N = there.count * (tissue_N & measured_BG.reshape(-1)[map_N])
        row_N, col_N = position_N // C, position_N % C
        self.bin_SN = [
            (patch_N * (R // side) + row_N // side) * (C // side) + col_N // side
            for side in (scale // 2 for scale in scales_um)
        ]

        self.factor_sums_BK = self.h_BKRC.sum((2, 3), dtype=torch.float64)
        self.loading_sums_BK = measured_BG.double() @ loadings_GK.double()
        n_expected = (self.factor_sums_BK * self.loading_sums_BK).sum()  # the same at every scale
        self.ratio_SN, sums = [], []
        for bin_N, factors in zip(self.bin_SN, self.factors_XK, strict=True):
            ratio_N, y_log_rate = self._quotients(bin_N, factors, count_N)
            self.ratio_SN.append(ratio_N)
            saturated = _surprise_of_saturated(bin_N * G + self.gene_N, count_N)
            sums.append(saturated - y_log_rate + n_expected)
        self.sums_S = torch.stack(sums)

    def _quotients(self, bin_N: Tensor, factors: Tensor, count_N: Tensor) -> tuple[Tensor, Tensor]:
        """y/Λ of each count y, where Λ is the rate of the scale's bin, and ``Σ y·log Λ``."""
        ratio_N = torch.empty_like(count_N, dtype=factors.dtype)
        y_log_rate = torch.zeros((), dtype=torch.float64, device=factors.device)
        for part in _parts(len(count_N)):
            rate = (self.loadings_GK[self.gene_N[part]] * factors[bin_N[part]]).sum(1)
            rate, y = rate.clamp(MIN_RATE), count_N[part].to(rate.dtype)
            ratio_N[part] = y / rate
            y_log_rate += torch.xlogy(y, rate).sum(dtype=torch.float64)
        return ratio_N, y_log_rate

    def log_factor_gradient(self, weights_S: Tensor) -> Tensor:
        """Gradient of the weighted sum of `sums_S` with respect to log h, (B, K, R, C)."""
        weights_S = weights_S.to(self.h_BKRC.dtype)
        pushed_BK = weights_S.sum() * self.loading_sums_BK.to(self.h_BKRC.dtype)
        pulled = []
        for s in (active := _active(weights_S)):
            pulled_XK = torch.zeros_like(self.factors_XK[s])
            for part in _parts(len(self.gene_N)):
                scale = weights_S[s] * self.ratio_SN[s][part, None]
                gathered = self.loadings_GK[self.gene_N[part]] * scale
                pulled_XK.index_add_(0, self.bin_SN[s][part], gathered)
            pulled.append(_by_factor(pulled_XK, self.h_BKRC.shape, self.scales[s]))
        gradient_BKRC = pushed_BK[:, :, None, None]
        if active:
            gradient_BKRC = gradient_BKRC - spread(pulled, [self.scales[s] for s in active])
        return self.h_BKRC * gradient_BKRC

    def loading_gradient(self, weights_S: Tensor) -> Tensor:
        """Gradient of the weighted sum of `sums_S` with respect to W, (G, K)."""
        weights_S = weights_S.to(self.h_BKRC.dtype)
        pushed_GK = self.measured_BG.double().T @ self.factor_sums_BK
        out_GK = weights_S.sum() * pushed_GK.to(self.h_BKRC.dtype)
        for s in _active(weights_S):
            for part in _parts(len(self.gene_N)):
                scale = weights_S[s] * self.ratio_SN[s][part, None]
                gathered = self.factors_XK[s][self.bin_SN[s][part]] * scale
                out_GK.index_add_(0, self.gene_N[part], gathered, alpha=-1)
        return out_GK


def _active(weights_S: Tensor) -> list[int]:
    """Indices of scales whose weight is not 0."""
    return [s for s, weight in enumerate(weights_S.tolist()) if weight != 0]


def _surprise_of_saturated(key_N: Tensor, count_N: Tensor) -> Tensor:
    """``Σ Y·log Y - Y``, where Y sums the counts of equal keys; float64."""
    key_N, order_N = key_N.sort()
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

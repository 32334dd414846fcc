"""Multi-scale negative binomial loss on raw counts, with a learned dispersion per gene and scale.

Shape suffixes: B patches, G genes, R = C = bins a side at 2 µm, S scales, N non-zero bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from virchow_st.kernels.poisson import MAX_LOG_RATE, MIN_LOG_RATE
from virchow_st.models.losses.base import Counts, Objective, dense_counts
from virchow_st.models.losses.scales import bins_with_tissue, check_scales, chosen_scales, pyramid

_FIRST_SIZES = (0.01, 100.0)  # the bounds of what the training counts suggest to begin with
_MIN_LOG_SIZE, _MAX_LOG_SIZE = -10.0, 15.0  # keeps the exponential finite


class MultiScaleNegativeBinomial(Objective):
    """Negative binomial likelihood per gene and bin, at every scale.

    The decoder's output is log λ of 2 µm bins, as for Poisson. With K the counts summed over the
    tissue bins of a coarser bin and Λ the rates summed over the same bins, K is taken to be
    negative binomial with mean Λ and variance ``Λ + Λ²/θ``. A sum of negative binomials is not
    one, so each scale has a θ of its own per gene; what a bin contributes is

    ``-log NB(K; Λ, θ) + log Poisson(K; K)``.

    The second term depends on the data alone. A negative binomial is a mixture of Poissons, none
    of which gives K more probability than the one of mean K: the sum is ≥ 0 for all Λ and θ, as
    GradNorm's loss ratios need, and for θ → ∞ it is half the Poisson deviance
    (`virchow_st.models.losses.poisson`). It is a likelihood in θ too, which a negative binomial
    deviance is not: that one is least for θ → 0, whatever the counts.

    Args:
        train_rate: (G,) mean UMIs of a tissue bin in training, > 0.
        train_std: (4, G) standard deviation of the counts summed to 2, 4, 8 and 16 µm; θ begins
            where it explains them by a constant rate.
        scales_um: sides of the bins to supervise, µm.

    Attributes:
        log_size: (S, G) parameter, log θ.
    """

    def __init__(self, train_rate: Tensor, train_std: Tensor, scales_um: Sequence[int]) -> None:
        super().__init__()
        self.scales_um = check_scales(scales_um)
        self.register_buffer("train_rate", train_rate.float())
        self.register_buffer("initial_bias", train_rate.float().clamp(min=1e-8).log())
        sides_S1 = torch.tensor([scale // 2 for scale in self.scales_um])[:, None]
        mean_SG = train_rate.double() * sides_S1**2
        variance_SG = chosen_scales(train_std, self.scales_um).double() ** 2
        beyond_poisson_SG = (variance_SG - mean_SG).clamp(min=1e-12)
        size_SG = (mean_SG**2 / beyond_poisson_SG).clamp(*_FIRST_SIZES)
        self.log_size = nn.Parameter(size_SG.log().float())

    def rate(self, output_BGRC: Tensor) -> Tensor:
        """Expected UMIs per 2 µm bin: the exponential of the output."""
        return output_BGRC.float().clamp(MIN_LOG_RATE, MAX_LOG_RATE).exp()

    def forward(self, output_BGRC: Tensor, counts: Counts, tissue_mask_BRC: Tensor) -> Tensor:
        """Loss at each scale, (S,); see `Objective`."""
        wide = torch.promote_types(output_BGRC.dtype, torch.float32)
        mask_B1RC = tissue_mask_BRC[:, None].to(wide)
        log_rate = _pass_clamp(output_BGRC.to(wide), MIN_LOG_RATE, MAX_LOG_RATE)
        rates = pyramid(log_rate.exp() * mask_B1RC, self.scales_um)
        dense_BGRC = dense_counts(counts, output_BGRC.device).to(wide)
        umis = pyramid(dense_BGRC * mask_B1RC, self.scales_um)
        n_tissue = pyramid(mask_B1RC, self.scales_um)
        log_size = _pass_clamp(self.log_size.to(wide), _MIN_LOG_SIZE, _MAX_LOG_SIZE)
        losses = []
        for rate, umi, n, size_G in zip(rates, umis, n_tissue, log_size.exp(), strict=True):
            n_bins = bins_with_tissue(n) * rate.shape[1]
            losses.append(negative_binomial_loss(rate, umi, size_G) / n_bins)
        return torch.stack(losses)


def negative_binomial_loss(rate_BGRC: Tensor, umi_BGRC: Tensor, size_G: Tensor) -> Tensor:
    """``Σ log Poisson(K; K) - log NB(K; Λ, θ)`` over all bins; those with Λ = K = 0 add nothing.

    Bins without counts, nineteen in twenty, come down to ``θ·log(1 + Λ/θ)``; gamma functions and
    logarithms of rates are needed at the others only, in float64, since large ones cancel.
    """
    size_G11 = size_G[:, None, None]
    everywhere = (size_G11 * torch.log1p(rate_BGRC / size_G11)).sum()
    seen = umi_BGRC.nonzero(as_tuple=True)
    k_N, rate_N, size_N = (x.double() for x in (umi_BGRC[seen], rate_BGRC[seen], size_G[seen[1]]))
    gammas_N = torch.lgamma(k_N + size_N) - torch.lgamma(size_N)
    at_counts_N = k_N * (k_N * (size_N + rate_N) / rate_N).log() - k_N - gammas_N
    return everywhere + at_counts_N.sum().to(rate_BGRC.dtype)


def _pass_clamp(x: Tensor, low: float, high: float) -> Tensor:
    """Clamped, with the gradient of the identity, so that what ran away is still pulled back."""
    return x + (x.clamp(low, high) - x).detach()

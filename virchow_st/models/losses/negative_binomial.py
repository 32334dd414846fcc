"""Multi-scale negative binomial loss on raw counts, with a learned dispersion per gene and scale.

Shape suffixes: B patches, G genes, R = C = bins per side at 2 µm, S scales, N non-zero bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from virchow_st.kernels.poisson import MAX_LOG_RATE, MIN_LOG_RATE
from virchow_st.models.losses.base import Counts, Objective, dense_counts, exposed
from virchow_st.models.losses.measured import measured_bins, of_measured
from virchow_st.models.losses.scales import check_scales, chosen_scales, pyramid, tissue_bins

_FIRST_SIZES = (0.01, 100.0)  # bounds of the initial θ estimated from the training counts
_MIN_LOG_SIZE, _MAX_LOG_SIZE = -10.0, 15.0  # keep the exponential finite


class MultiScaleNegativeBinomial(Objective):
    """Negative binomial loss per gene and bin, at every scale.

    The decoder's output is log λ of 2 µm bins, as for Poisson. K is the count and Λ the rate of a
    coarser bin, each summed over its 2 µm tissue bins. K is modelled as negative binomial with mean
    Λ and variance ``Λ + Λ²/θ``. A sum of negative binomial variables is not negative binomial, so
    every scale has its own θ per gene. The contribution of a bin is

    ``-log NB(K; Λ, θ) + log Poisson(K; K)``.

    The second term depends on the data only. A negative binomial is a mixture of Poisson
    distributions, and none of them gives K a larger probability than the Poisson of mean K. The
    contribution is therefore ≥ 0 for all Λ and θ, which GradNorm's loss ratios require; for θ → ∞
    it is half the Poisson deviance (`virchow_st.models.losses.poisson`). It is also a likelihood of
    θ. The negative binomial deviance is not: it is smallest for θ → 0, whatever the counts.

    Args:
        train_rate: (G,) mean UMIs per 2 µm tissue bin of the training patches, > 0.
        train_std: (4, G) standard deviation of the counts summed to 2, 4, 8 and 16 µm. θ is
            initialised to the value that explains this deviation with a constant rate.
        scales_um: Sides of the supervised bins, µm.

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
        """Predicted UMIs per 2 µm bin: the exponential of the output."""
        return output_BGRC.float().clamp(MIN_LOG_RATE, MAX_LOG_RATE).exp()

    def forward(
        self,
        output_BGRC: Tensor,
        counts: Counts,
        exposure_BRC: Tensor,
        measured_BG: Tensor | None = None,
    ) -> Tensor:
        """Loss at each scale, (S,); see `Objective.forward`."""
        wide = torch.promote_types(output_BGRC.dtype, torch.float32)
        output_BGRC, tissue_mask_BRC = exposed(output_BGRC.to(wide), exposure_BRC)
        mask_B1RC = tissue_mask_BRC[:, None].to(wide)
        log_rate = _pass_clamp(output_BGRC, MIN_LOG_RATE, MAX_LOG_RATE)
        rate_BGRC = of_measured(log_rate.exp() * mask_B1RC, measured_BG)
        rates = pyramid(rate_BGRC, self.scales_um)
        dense_BGRC = dense_counts(counts, output_BGRC.device).to(wide)
        umis = pyramid(of_measured(dense_BGRC * mask_B1RC, measured_BG), self.scales_um)
        n_genes = rate_BGRC.shape[1]
        n_bins_S = measured_bins(tissue_bins, tissue_mask_BRC, self.scales_um, measured_BG, n_genes)
        log_size = _pass_clamp(self.log_size.to(wide), _MIN_LOG_SIZE, _MAX_LOG_SIZE)
        losses = []
        for rate, umi, n_bins, size_G in zip(rates, umis, n_bins_S, log_size.exp(), strict=True):
            losses.append(negative_binomial_loss(rate, umi, size_G) / n_bins)
        return torch.stack(losses)


def negative_binomial_loss(rate_BGRC: Tensor, umi_BGRC: Tensor, size_G: Tensor) -> Tensor:
    """``Σ log Poisson(K; K) - log NB(K; Λ, θ)`` over all bins; bins with Λ = K = 0 add 0.

    For bins without counts (95 % at 2 µm) the term is ``θ·log(1 + Λ/θ)``. Gamma functions and
    logarithms of rates are computed only for the other bins, in float64 because large terms cancel.

    Args:
        rate_BGRC: Rates Λ ≥ 0.
        umi_BGRC: Counts K, UMIs, in the same dtype.
        size_G: (G,) θ > 0.

    Returns:
        Scalar sum in the dtype of the rates.

    Example:
        A large θ gives half the Poisson deviance, here 2·log 2 − 1 ≈ 0.386:

        >>> rate, umi = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)
        >>> negative_binomial_loss(rate, umi, torch.tensor([1e6]))
        tensor(0.3863)
    """
    size_G11 = size_G[:, None, None]
    everywhere = (size_G11 * torch.log1p(rate_BGRC / size_G11)).sum()
    seen = umi_BGRC.nonzero(as_tuple=True)
    k_N, rate_N, size_N = (x.double() for x in (umi_BGRC[seen], rate_BGRC[seen], size_G[seen[1]]))
    gammas_N = torch.lgamma(k_N + size_N) - torch.lgamma(size_N)
    at_counts_N = k_N * (k_N * (size_N + rate_N) / rate_N).log() - k_N - gammas_N
    return everywhere + at_counts_N.sum().to(rate_BGRC.dtype)


def _pass_clamp(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp with the gradient of the identity, so that a diverged value is still pulled back."""
    return x + (x.clamp(low, high) - x).detach()

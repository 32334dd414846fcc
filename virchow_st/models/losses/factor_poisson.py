"""Multi-scale Poisson loss of a rate field of factors: every gene from a few maps.

Shape suffixes: B patches, G genes, P genes of the panel, K factors, R = C = bins per side at 2 µm,
S scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from virchow_st.kernels.poisson import MAX_LOG_RATE, MIN_LOG_RATE
from virchow_st.models.losses.base import Counts, Objective, exposed, genes_of
from virchow_st.models.losses.factors import factor_half_deviance
from virchow_st.models.losses.measured import measured_bins
from virchow_st.models.losses.scales import check_scales, tissue_bins


@dataclass(frozen=True)
class FactorStart:
    """Factors that training begins with.

    Attributes:
        loadings_GK: (G, K) share of each gene in a factor's UMIs; each column sums to 1.
        rate_K: (K,) mean UMIs of each factor per 2 µm tissue bin, > 0.
        panel_P: (P,) int64 index of each gene of the panel among all genes.
    """

    loadings_GK: Tensor
    rate_K: Tensor
    panel_P: Tensor

    @staticmethod
    def of_shape(n_genes: int, n_factors: int, n_panel: int) -> FactorStart:
        """Placeholder of these shapes, into which a checkpoint can be loaded."""
        return FactorStart(
            torch.full((n_genes, n_factors), 1 / n_genes),
            torch.ones(n_factors),
            torch.zeros(n_panel, dtype=torch.int64),
        )


class FactorPoisson(Objective):
    """Half the Poisson deviance per gene and bin of rates that are sums of factors.

    The rate of gene g in a 2 µm bin is ``λ_g = Σ_k W_gk·h_k``. The decoder's output is ``log h`` of
    K factors; the loadings W belong to the objective and are learned with the decoder. Every
    column of W is a softmax over genes, so it sums to 1, and a factor h_k is in UMIs of all genes
    per bin. The cost per scale grows with the number of non-zero counts times K; neither counts
    nor rates of all genes are ever dense (`virchow_st.models.losses.factors`).

    Args:
        train_rate: (G,) mean UMIs of all genes per 2 µm tissue bin of the training patches, > 0.
        scales_um: Sides of the supervised bins, µm.
        start: Loadings and mean factors that training begins with.

    Attributes:
        train_rate: (P,) that of the panel's genes.
        gene_rate: (G,) that of all genes.
        initial_bias: (K,) logarithm of the mean factors.
        panel: (P,) index of each gene of the panel among all genes.
    """

    gene_rate: Tensor
    panel: Tensor

    def __init__(self, train_rate: Tensor, scales_um: Sequence[int], start: FactorStart) -> None:
        super().__init__()
        self.scales_um = check_scales(scales_um)
        self.register_buffer("gene_rate", train_rate.float())
        self.register_buffer("panel", start.panel_P)
        self.register_buffer("train_rate", train_rate.float()[start.panel_P])
        self.register_buffer("initial_bias", start.rate_K.float().clamp(min=1e-8).log())
        # Adam's step in a logarithm is the same for genes of every abundance.
        self.log_loadings = nn.Parameter(start.loadings_GK.float().clamp(min=1e-12).log())

    @property
    def loadings(self) -> Tensor:
        """(G, K) share of each gene in a factor's UMIs."""
        return self.log_loadings.softmax(0)

    def factors(self, output_BKRC: Tensor) -> Tensor:
        """UMIs of each factor per 2 µm bin, (B, K, R, C): the exponential of the output."""
        return output_BKRC.float().clamp(MIN_LOG_RATE, MAX_LOG_RATE).exp()

    def rate(self, output_BKRC: Tensor) -> Tensor:
        """Predicted UMIs of the panel's genes per 2 µm bin, (B, P, R, C)."""
        loadings_PK = self.loadings[self.panel]
        return torch.einsum("pk,bkrc->bprc", loadings_PK, self.factors(output_BKRC))

    def panel_counts(self, counts: Counts) -> Counts:
        """Counts of the panel's genes, (B, P, R, C), from those of all genes."""
        return genes_of(counts, self.panel)

    def panel_measured(self, measured_BG: Tensor) -> Tensor:
        """Whether each patch's store measured each gene of the panel, (B, P)."""
        return measured_BG[:, self.panel.cpu()]

    def forward(
        self,
        output_BKRC: Tensor,
        counts: Counts,
        exposure_BRC: Tensor,
        measured_BG: Tensor | None = None,
    ) -> Tensor:
        """Half the deviance per gene and bin at each scale, (S,); see `Objective.forward`."""
        output_BKRC, tissue_mask_BRC = exposed(output_BKRC.float(), exposure_BRC)
        n_genes, scales = len(self.gene_rate), self.scales_um
        n_bins_S = measured_bins(tissue_bins, tissue_mask_BRC, scales, measured_BG, n_genes)
        if measured_BG is not None:
            measured_BG = measured_BG.to(output_BKRC.device)
        return factor_half_deviance(
            output_BKRC, self.loadings, counts, tissue_mask_BRC, n_bins_S, scales, measured_BG
        )

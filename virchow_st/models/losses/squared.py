"""Multi-scale squared error on z-scored counts, a baseline for the Poisson loss.

Shape suffixes: B patches, G genes, R = C = bins per side at 2 µm, S scales.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from virchow_st.models.losses.base import Counts, Objective, dense_counts
from virchow_st.models.losses.measured import measured_bins, of_measured
from virchow_st.models.losses.scales import check_scales, chosen_scales, pyramid, tissue_bins


class MultiScaleSquared(Objective):
    """Mean squared difference of z-scores, at every scale.

    The decoder's output is the z-score of a 2 µm bin, ``(rate - mean) / std`` with the mean and
    standard deviation of the training counts per gene. At a coarser scale the difference between
    summed rates and summed counts, over the same tissue bins, is divided by the standard deviation
    of the counts at that scale.

    Args:
        train_rate: (G,) mean UMIs per 2 µm tissue bin of the training patches.
        train_std: (4, G) standard deviation, > 0, of the counts summed to 2, 4, 8 and 16 µm.
        scales_um: Sides of the supervised bins, µm.
    """

    std_2um: Tensor
    std: Tensor

    def __init__(self, train_rate: Tensor, train_std: Tensor, scales_um: Sequence[int]) -> None:
        super().__init__()
        self.scales_um = check_scales(scales_um)
        self.register_buffer("train_rate", train_rate.float())
        self.register_buffer("initial_bias", torch.zeros_like(train_rate, dtype=torch.float32))
        self.register_buffer("std_2um", train_std[0].float())
        self.register_buffer("std", chosen_scales(train_std, self.scales_um).float())

    def rate(self, output_BGRC: Tensor) -> Tensor:
        """Predicted UMIs per 2 µm bin; a regression on z-scores may predict negative values."""
        mean_G11, std_G11 = self.train_rate[:, None, None], self.std_2um[:, None, None]
        return mean_G11 + std_G11 * output_BGRC.float()

    def forward(
        self,
        output_BGRC: Tensor,
        counts: Counts,
        exposure_BRC: Tensor,
        measured_BG: Tensor | None = None,
    ) -> Tensor:
        """Mean squared z-score difference at each scale, (S,); see `Objective.forward`.

        Raises:
            TypeError: ``exposure_BRC`` is not a bool mask; z-scores know no exposure.
        """
        if exposure_BRC.dtype != torch.bool:
            raise TypeError("exposure: the squared error takes a bool tissue mask only")
        mask_B1RC = exposure_BRC[:, None].float()
        counts_BGRC = dense_counts(counts, output_BGRC.device)
        difference = (self.rate(output_BGRC) - counts_BGRC) * mask_B1RC
        levels = pyramid(of_measured(difference, measured_BG), self.scales_um)
        n_bins_S = measured_bins(
            tissue_bins, exposure_BRC, self.scales_um, measured_BG, difference.shape[1]
        )
        losses = []
        for level, std_G, n_bins in zip(levels, self.std, n_bins_S, strict=True):
            losses.append(((level / std_G[:, None, None]) ** 2).sum() / n_bins)
        return torch.stack(losses)

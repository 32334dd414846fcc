"""Shallow convolutional stem that maps the patch image to features at 2, 4 and 8 µm.

Shape suffixes: B patches, P = 256 px per side (1 µm), C channels, H = 128, M = 64, L = 32 cells per
side (2, 4, 8 µm).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from virchow_st.models.decoders.parts import EdgeConv, ResBlock
from virchow_st.models.decoders.variation import Augmentation

# Typical optical density of stained tissue and its spread, to scale the input to order one.
_TYPICAL, _SPREAD = 0.2, 0.15
# Directions of haematoxylin and eosin in optical density (R, G, B), after Ruifrok & Johnston 2001.
_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))
# Random stain variation in training: standard deviations of the log of a stain's strength, of its
# direction, and of the optical density of the background.
_STRENGTH_SD, _DIRECTION_SD, _GLASS_SD = 0.25, 0.06, 0.03


class OpticalDensity(Augmentation):
    """Converts RGB to optical density, in which stains add up; varies the stain in training.

    Stain differs more between patients than within one. In training, the strength and colour of
    each stain are drawn at random for every patch, which simulates slides of other laboratories
    (Tellez et al. 2018, arXiv:1808.05896).
    """

    stains_33: Tensor
    unmix_33: Tensor

    def __init__(self) -> None:
        super().__init__()
        stains = torch.tensor(_STAINS)
        stains = torch.cat([stains, torch.linalg.cross(stains[0], stains[1])[None]])  # and the rest
        stains = stains / stains.norm(dim=1, keepdim=True)
        self.register_buffer("stains_33", stains, persistent=False)
        self.register_buffer("unmix_33", torch.linalg.inv(stains), persistent=False)

    def forward(self, image_B3PP: Tensor) -> Tensor:
        """Convert (B, 3, P, P) RGB in 0 to 1 to scaled optical density, of order one on tissue."""
        density_B3PP = -torch.log10((255 * image_B3PP + 1) / 256)
        if self.is_varying:
            density_B3PP = self._stained_anew(density_B3PP)
        return (density_B3PP - _TYPICAL) / _SPREAD

    def _stained_anew(self, density_B3PP: Tensor) -> Tensor:
        draw_B35 = self.amount * self.draw(density_B3PP, 3, 5)
        strength_B31 = torch.exp(_STRENGTH_SD * draw_B35[..., :1])
        stains_B33 = strength_B31 * (self.stains_33 + _DIRECTION_SD * draw_B35[..., 1:4])
        glass_B31 = _GLASS_SD * draw_B35[..., 4:]
        mix_B33 = (self.unmix_33 @ stains_B33).transpose(1, 2)  # colours to stains to new colours
        return torch.baddbmm(glass_B31, mix_B33, density_B3PP.flatten(2)).view_as(density_B3PP)


class ImageStem(nn.Module):
    """Maps the patch image to features at 2, 4 and 8 µm.

    Args:
        widths: Channels at 2, 4 and 8 µm, multiples of 8.
    """

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.density = OpticalDensity()
        fine, middle, coarse = widths
        self.to_2um = nn.Sequential(
            nn.PixelUnshuffle(2),
            EdgeConv(12, fine, 3),
            nn.GELU(),
            EdgeConv(fine, fine, 3),
        )
        self.to_4um = nn.Sequential(nn.Conv2d(fine, middle, 2, stride=2), ResBlock(middle))
        self.to_8um = nn.Sequential(nn.Conv2d(middle, coarse, 2, stride=2), ResBlock(coarse))

    def forward(self, image_B3PP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, P, P) RGB in 0 to 1 to (B, C, H, H), (B, C', M, M) and (B, C″, L, L)."""
        fine = self.to_2um(self.density(image_B3PP))
        middle = self.to_4um(fine)
        return fine, middle, self.to_8um(middle)

"""Pieces that decoders share.

Shape suffixes: B patches, T tokens a side, D token channels, C width.
"""

from __future__ import annotations

from torch import Tensor, nn


class TokenNorm(nn.Module):
    """Standardise token channels with the training tokens' mean and standard deviation.

    Args:
        mean_D, std_D: (D,) over the tokens of the training patches.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean_D: Tensor, std_D: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean_D.float())
        self.register_buffer("scale", 1.0 / std_D.float().clamp(min=1e-6))

    def forward(self, tokens_BTTD: Tensor) -> Tensor:
        """(B, T, T, D) to the same shape; far outliers are cut at ±8 standard deviations."""
        return ((tokens_BTTD - self.mean) * self.scale).clamp(-8.0, 8.0)


class Upsampler(nn.Module):
    """Sub-pixel convolution (Shi et al. 2016), doubling the grid until it is ``n_bins`` wide.

    A token holds what its 8×8 bins look like; sub-pixel convolution unfolds channels into bins,
    where interpolation would blur them.

    Args:
        width: channels of the token grid.
        out_channels: channels at bin resolution.
        n_doublings: 3 for 16 tokens to 128 bins.
    """

    def __init__(self, width: int, out_channels: int, n_doublings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = width
        for i in reversed(range(n_doublings)):
            narrower = out_channels * 2**i
            layers += [
                nn.Conv2d(channels, 4 * narrower, 1),
                nn.PixelShuffle(2),
                nn.GELU(),
                nn.Conv2d(narrower, narrower, 3, padding=1),
                nn.GELU(),
            ]
            channels = narrower
        self.layers = nn.Sequential(*layers)

    def forward(self, grid_BCTT: Tensor) -> Tensor:
        """(B, C, T, T) to (B, out_channels, n_bins, n_bins)."""
        return self.layers(grid_BCTT)

"""Pieces that decoders share.

Shape suffixes: B patches, T tokens a side, D token channels, C width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

# Rates do not end where a patch ends: zeros around it would darken the seams of a stitched slide.
PADDING: Literal["replicate"] = "replicate"


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
    """Sub-pixel convolution (Shi et al. 2016, arXiv:1609.05158), doubling the grid step by step.

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
                _unfolding(channels, narrower),
                nn.PixelShuffle(2),
                nn.GELU(),
                nn.Conv2d(narrower, narrower, 3, padding=1, padding_mode=PADDING),
                nn.GELU(),
            ]
            channels = narrower
        self.layers = nn.Sequential(*layers)

    def forward(self, grid_BCTT: Tensor) -> Tensor:
        """(B, C, T, T) to (B, out_channels, T·2ⁿ, T·2ⁿ) after n doublings."""
        return self.layers(grid_BCTT)


def unfold_tokens(dim: int, channels: int, side: int) -> nn.Sequential:
    """Linear map of each token to ``channels`` maps of its own ``side``×``side`` bins.

    Args:
        dim: D.
        channels: maps at bin resolution.
        side: bins a side of a token.

    Returns:
        A module from (B, D, T, T) to (B, channels, T·side, T·side).
    """
    return nn.Sequential(nn.Conv2d(dim, channels * side * side, 1), nn.PixelShuffle(side))


def _unfolding(channels: int, narrower: int) -> nn.Conv2d:
    """1×1 convolution before a pixel shuffle, its four sub-pixels equal at first.

    Else their different random weights show as a checkerboard (Aitken et al. 2017,
    arXiv:1707.02937).
    """
    conv = nn.Conv2d(channels, 4 * narrower, 1)
    with torch.no_grad():
        conv.weight.copy_(conv.weight[::4].repeat_interleave(4, dim=0))
        conv.bias.copy_(conv.bias[::4].repeat_interleave(4))  # type: ignore[union-attr, index]
    return conv

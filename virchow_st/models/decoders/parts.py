"""Layers shared by several decoders.

Shape suffixes: B patches, T tokens per side, D token channels, C width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from virchow_st.models.decoders.variation import Augmentation

# Standard deviation of the random scale and offset of a token channel in training, in units of the
# channel's standard deviation.
_JITTER_SD = 0.5


class EdgeConv(nn.Conv2d):
    """Convolution that keeps the size of a map, with replicate padding.

    The tissue continues beyond the edge of a patch; zero padding would lower the rates along the
    seams of a stitched slide.

    Args:
        channels, out_channels: Channels of input and output.
        side: Side of the kernel, odd.
        groups: Number of channel groups that are convolved separately.
    """

    def __init__(self, channels: int, out_channels: int, side: int, groups: int = 1) -> None:
        super().__init__(
            channels, out_channels, side, padding=side // 2, groups=groups, padding_mode="replicate"
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W)."""
        if not torch.compiler.is_compiling():
            return super().forward(x_BCHW)
        # torch.compile (2.15) assumes a wrong memory layout for the gradient of torch's padding;
        # concatenation avoids that and can be fused.
        n = self.kernel_size[0] // 2
        for dim in (2, 3):
            last = x_BCHW.shape[dim] - 1
            edges = x_BCHW.narrow(dim, 0, 1), x_BCHW.narrow(dim, last, 1)
            x_BCHW = torch.cat([*[edges[0]] * n, x_BCHW, *[edges[1]] * n], dim)
        return conv2d(x_BCHW, self.weight, self.bias, groups=self.groups)


class TokenNorm(Augmentation):
    """Standardises token channels with the mean and standard deviation of the training tokens.

    In training, every token channel of a patch is scaled and shifted at random, as it may differ
    between patients. The decoder then relies less on the exact level of single channels.

    Args:
        mean_D, std_D: (D,) mean and standard deviation over the tokens of the training patches.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean_D: Tensor, std_D: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean_D.float())
        self.register_buffer("scale", 1.0 / std_D.float().clamp(min=1e-6))

    def forward(self, tokens_BTTD: Tensor) -> Tensor:
        """Standardise (B, T, T, D); outliers are clamped at ±8 standard deviations."""
        tokens_BTTD = ((tokens_BTTD - self.mean) * self.scale).clamp(-8.0, 8.0)
        if not self.is_varying:
            return tokens_BTTD
        stretch_B11D, shift_B11D = (
            _JITTER_SD * self.amount * self.draw(tokens_BTTD, 2, 1, 1, len(self.mean))
        ).unbind(1)
        return tokens_BTTD * (1 + stretch_B11D) + shift_B11D


def group_norm(width: int) -> nn.Module:
    """Normalise by the mean and spread over a whole patch, of eight groups of channels."""
    return nn.GroupNorm(8, width)


class CellNorm(nn.Module):
    """Normalise each cell by the root mean square of its own channels (Zhang & Sennrich 2019).

    Nothing that lies elsewhere in the patch counts, so that patches side by side, of different
    tissue, do not differ in level where they meet.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        scale_B1HW = torch.rsqrt(x_BCHW.square().mean(1, keepdim=True) + 1e-5)
        return x_BCHW * scale_B1HW * self.weight[:, None, None] + self.bias[:, None, None]


class ConvBlock(nn.Module):
    """Depthwise 5×5 and pointwise convolution, each with a residual (Trockman & Kolter 2022)."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module] = group_norm) -> None:
        super().__init__()
        self.space = nn.Sequential(
            EdgeConv(width, width, 5, groups=width),
            nn.GELU(),
            norm(width),
        )
        self.channels = nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU(), norm(width))

    def forward(self, x_BCTT: Tensor) -> Tensor:
        """(B, C, T, T) to the same shape."""
        x_BCTT = x_BCTT + self.space(x_BCTT)
        return x_BCTT + self.channels(x_BCTT)


class ResBlock(nn.Module):
    """Two 3×3 convolutions with a residual (He et al. 2016, arXiv:1603.05027).

    GroupNorm uses no batch statistics, so the output for a patch does not depend on its batch.
    """

    def __init__(self, width: int, norm: Callable[[int], nn.Module] = group_norm) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            norm(width),
            nn.GELU(),
            EdgeConv(width, width, 3),
            norm(width),
            nn.GELU(),
            EdgeConv(width, width, 3),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x_BCHW + self.layers(x_BCHW)


class Upsampler(nn.Module):
    """Upsampling by sub-pixel convolutions (Shi et al. 2016, arXiv:1609.05158), a factor 2 each.

    A token encodes the content of its 8×8 bins in its channels. Sub-pixel convolution unfolds
    channels into bins, whereas interpolation would blur them.

    Args:
        width: Channels of the token grid.
        out_channels: Channels at bin resolution.
        n_doublings: Number of doublings; 3 from 16 tokens to 128 bins.
    """

    def __init__(self, width: int, out_channels: int, n_doublings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = width
        for i in reversed(range(n_doublings)):
            narrower = out_channels * 2**i
            layers += [
                *unfolding(channels, narrower),
                nn.GELU(),
                EdgeConv(narrower, narrower, 3),
                nn.GELU(),
            ]
            channels = narrower
        self.layers = nn.Sequential(*layers)

    def forward(self, grid_BCTT: Tensor) -> Tensor:
        """(B, C, T, T) to (B, out_channels, T·2ⁿ, T·2ⁿ) after n doublings."""
        return self.layers(grid_BCTT)


class Fusion(nn.Module):
    """Adds features of a coarser grid, unfolded by a factor 2, to those of the finer grid."""

    def __init__(
        self, coarse: int, fine: int, norm: Callable[[int], nn.Module] = group_norm
    ) -> None:
        super().__init__()
        self.unfold = unfolding(coarse, fine)
        self.block = ResBlock(fine, norm)

    def forward(self, coarse_BCLL: Tensor, fine_BCMM: Tensor) -> Tensor:
        """(B, C, L, L) and (B, C', 2L, 2L) to (B, C', 2L, 2L)."""
        return self.block(self.unfold(coarse_BCLL) + fine_BCMM)


class TokenDetail(nn.Module):
    """Appends a linear map of each token to its own bins to features that mix tokens.

    Args:
        dim: Token channels, D.
        side: Bins per side of a token.
    """

    channels = 8

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.unfold = unfold_tokens(dim, self.channels, side)

    def forward(self, mixed_BCHW: Tensor, tokens_BTTD: Tensor) -> Tensor:
        """Features and standardised tokens to (B, C + channels, H, W)."""
        return torch.cat([mixed_BCHW, self.unfold(tokens_BTTD.permute(0, 3, 1, 2))], dim=1)


def unfold_tokens(dim: int, channels: int, side: int) -> nn.Sequential:
    """Linear map of each token to ``channels`` values for each of its own ``side``×``side`` bins.

    Args:
        dim: Token channels, D.
        channels: Channels at bin resolution.
        side: Bins per side of a token.

    Returns:
        A module from (B, D, T, T) to (B, channels, T·side, T·side).
    """
    return nn.Sequential(nn.Conv2d(dim, channels * side * side, 1), nn.PixelShuffle(side))


def unfolding(channels: int, narrower: int, factor: int = 2) -> nn.Sequential:
    """1×1 convolution and pixel shuffle to a grid ``factor`` times finer.

    The weights of all sub-pixels are equal at initialisation; different random weights would show
    as a checkerboard pattern (Aitken et al. 2017, arXiv:1707.02937).
    """
    conv = nn.Conv2d(channels, factor**2 * narrower, 1)
    with torch.no_grad():
        first = slice(None, None, factor**2)
        conv.weight.copy_(conv.weight[first].repeat_interleave(factor**2, dim=0))
        conv.bias.copy_(conv.bias[first].repeat_interleave(factor**2))  # type: ignore[union-attr, index]
    return nn.Sequential(conv, nn.PixelShuffle(factor))

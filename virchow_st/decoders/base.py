"""What a decoder is to the trainer."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn


class GeneHead(nn.Conv2d):
    """1×1 convolution to genes, its bias set to the genes' training values.

    Its weight is the last layer that all scales share, where GradNorm measures gradients.
    """

    def __init__(self, channels: int, initial_bias_G: Tensor) -> None:
        super().__init__(channels, len(initial_bias_G), 1)
        nn.init.normal_(self.weight, std=0.01)
        with torch.no_grad():
            self.bias.copy_(initial_bias_G)  # type: ignore[union-attr]


class Decoder(nn.Module):
    """Tokens, and for some the patch image, to what an objective reads as rates.

    Attributes:
        wants_image: whether ``forward`` looks at the image.
        head: the last layer.
    """

    wants_image: bool = False
    head: GeneHead

    @abstractmethod
    def forward(self, tokens_BTTD: Tensor, image_B3PP: Tensor | None = None) -> Tensor:
        """Log-rates, or z-scores, of 2 µm bins.

        Args:
            tokens_BTTD: (B, T, T, D) float32.
            image_B3PP: (B, 3, 256, 256) float32 RGB in 0 to 1, if the decoder wants it.

        Returns:
            (B, G, 128, 128).
        """

"""What a decoder is to the trainer."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

# Adam moves every weight by about the learning rate a step, however small its input. The features
# that reach the head are small, so that at 5e-5 the rates would take thousands of steps to leave
# the gene means; the gain makes it tens. (A layer-wise learning rate in other words, as in Yang et
# al. 2021, arXiv:2203.03466.)
_GAIN = 5.0
_INITIAL_STD = 0.001


class GeneHead(nn.Conv2d):
    """1×1 convolution to genes, its bias set to the genes' training values.

    Its weight is the last layer that all scales share, where GradNorm measures gradients.
    """

    def __init__(self, channels: int, initial_bias_G: Tensor) -> None:
        super().__init__(channels, len(initial_bias_G), 1)
        nn.init.normal_(self.weight, std=_INITIAL_STD)
        with torch.no_grad():
            self.bias.copy_(initial_bias_G)  # type: ignore[union-attr]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, G, H, W), float32: bfloat16 would round a log-rate of -6 to 1/32."""
        with torch.autocast(x_BCHW.device.type, enabled=False):
            return super().forward(_GAIN * x_BCHW.float())


class Decoder(nn.Module):
    """Tokens, and for some the patch image, to what an objective reads as rates.

    Attributes:
        wants_image: whether ``forward`` looks at the image.
        head: the last layer. It stands apart, because GradNorm asks for the gradient of its weight
            alone: inside what `torch.compile` made one graph of, that would take all gradients.
    """

    wants_image: bool = False
    head: GeneHead

    @abstractmethod
    def features(self, tokens_BTTD: Tensor, image_B3PP: Tensor | None) -> Tensor:
        """(B, C, 128, 128), what the head makes outputs of; see `forward`."""

    def forward(self, tokens_BTTD: Tensor, image_B3PP: Tensor | None = None) -> Tensor:
        """Log-rates, or z-scores, of 2 µm bins.

        Args:
            tokens_BTTD: (B, T, T, D) float32.
            image_B3PP: (B, 3, 256, 256) float32 RGB in 0 to 1, if the decoder wants it.

        Returns:
            (B, G, 128, 128).
        """
        return self.head(self.features(tokens_BTTD, image_B3PP))

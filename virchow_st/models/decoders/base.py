"""Interface of decoders, and their last layer."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

# Adam changes every weight by about the learning rate per step, however small its input. The inputs
# of the head are small, so at a learning rate of 5e-5 the rates would need thousands of steps to
# leave the gene means; with the gain they need tens. This is equivalent to a layer-wise learning
# rate (Yang et al. 2021, arXiv:2203.03466).
HEAD_GAIN = 5.0
_INITIAL_STD = 0.001


class GeneHead(nn.Conv2d):
    """1×1 convolution from features to genes; its bias is initialised to the training means.

    Its weight is the last layer shared by all scales, at which GradNorm measures gradient norms.

    Args:
        channels: Number of input channels.
        initial_bias_G: (G,) initial bias.
    """

    def __init__(self, channels: int, initial_bias_G: Tensor) -> None:
        super().__init__(channels, len(initial_bias_G), 1)
        nn.init.normal_(self.weight, std=_INITIAL_STD)
        with torch.no_grad():
            self.bias.copy_(initial_bias_G)  # type: ignore[union-attr]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, G, H, W) in float32; bfloat16 would round a log-rate to 1/32."""
        with torch.autocast(x_BCHW.device.type, enabled=False):
            return super().forward(HEAD_GAIN * x_BCHW.float())


class Decoder(nn.Module):
    """Base class of decoders: tokens, and for some the patch image, to outputs per bin and gene.

    Attributes:
        wants_image: Whether ``forward`` uses the image.
        head: The last layer. It is separate from `features` because GradNorm needs the gradient of
            its weight only; inside one graph compiled by `torch.compile`, all gradients would have
            to be computed for that.
        margin_um: Margin of the neighbouring patches that a patch may come with, µm: tokens are
            then (B, T + 2m, T + 2m, D) with that many tokens m, images (B, 3, 256 + 2n, 256 + 2n)
            with that many pixels n. Without it the edge is repeated.
        begins_as_regression: Whether `begin` has to be called before training.
    """

    wants_image: bool = False
    margin_um: int = 0
    begins_as_regression: bool = False
    head: GeneHead

    @abstractmethod
    def features(self, tokens_BTTD: Tensor, image_B3PP: Tensor | None) -> Tensor:
        """Compute the features (B, C, 128, 128) that the head maps to outputs; see `forward`."""

    def forward(self, tokens_BTTD: Tensor, image_B3PP: Tensor | None = None) -> Tensor:
        """Predict the log-rates (or z-scores, depending on the loss) of 2 µm bins.

        Args:
            tokens_BTTD: (B, T, T, D) float32.
            image_B3PP: (B, 3, 256, 256) float32 RGB in 0 to 1; required if ``wants_image``.

        Returns:
            (B, G, 128, 128).
        """
        return self.head(self.features(tokens_BTTD, image_B3PP))

    def begin(self, weights_DG: Tensor, intercept_G: Tensor) -> None:
        """Make the output of the untrained decoder a regression on standardised tokens.

        Args:
            weights_DG: (D, G) of `TokenNorm`'s tokens.
            intercept_G: (G,).
        """
        raise NotImplementedError(f"{type(self).__name__} does not begin as a regression")

    def advance(self, done: float) -> None:
        """Change what depends on how far training is; in most decoders nothing does.

        Args:
            done: share of all training steps that are taken, 0 to 1.
        """

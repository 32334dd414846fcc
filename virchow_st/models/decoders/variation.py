"""Layers with random behaviour in training: augmentations and token dropout."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class RandomLayer(nn.Module):
    """A layer that draws random numbers for every patch in training.

    They come from torch's global generator, which the trainer seeds, so that a run is reproducible.

    Attributes:
        part_of: If several processes share a batch, the index of the first patch of this process's
            part and the number of patches of the whole batch; else None. Every process draws for
            the whole batch and uses the numbers of its own patches.
    """

    part_of: tuple[int, int] | None = None

    def draw(self, x: Tensor, *shape: int) -> Tensor:
        """Draw (B, *shape) standard normal numbers for the B patches of ``x``, on its device."""
        first, n_drawn = self.part_of or (0, len(x))
        return torch.randn(n_drawn, *shape, device=x.device)[first : first + len(x)]


class Augmentation(RandomLayer):
    """A layer that varies properties that differ between patients but not within one.

    With few training patients the decoder would overfit to stain intensity and to offsets of token
    channels; augmentations vary both.

    Attributes:
        amount: Strength of the variation; 1 is about the variation between laboratories, 0 none.
    """

    amount: float = 1.0

    @property
    def is_varying(self) -> bool:
        """Whether the layer varies its input: in training, if ``amount`` is above 0."""
        return self.training and self.amount > 0


def variations(decoder: nn.Module) -> Iterator[Augmentation]:
    """All augmentation layers of a decoder."""
    return (module for module in decoder.modules() if isinstance(module, Augmentation))


class TokenDropout(RandomLayer):
    """Sets the tokens of half of the patches, chosen at random, to their mean in training.

    The decoder learns faster from tokens than from the image, and would then hardly use the image.
    For patches without tokens it has to (ModDrop, Neverova et al. 2016, arXiv:1501.00102).
    """

    def forward(self, tokens_BTTD: Tensor) -> Tensor:
        """Drop tokens of standardised (B, T, T, D); unchanged outside training."""
        if not self.training:
            return tokens_BTTD
        return tokens_BTTD * (self.draw(tokens_BTTD, 1, 1, 1) > 0)

"""What is drawn at random in training, anew for every patch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class RandomLayer(nn.Module):
    """A layer that in training draws something for every patch.

    The draw comes from torch's generator, which the trainer seeds, so that a run repeats itself.

    Attributes:
        part_of: where the next batch is a part of one that processes share: its first patch and the
            number of patches there. All draw for all of them, and take what falls to their own.
    """

    part_of: tuple[int, int] | None = None

    def draw(self, x: Tensor, *shape: int) -> Tensor:
        """(B, *shape) standard normal, for the B patches of ``x`` and on its device."""
        first, n_drawn = self.part_of or (0, len(x))
        return torch.randn(n_drawn, *shape, device=x.device)[first : first + len(x)]


class Augmentation(RandomLayer):
    """A layer that varies what differs between patients and not within one.

    A few patients are too few to learn from what a stain, or a channel of the tokens, does not
    mean.

    Attributes:
        amount: of the variation, relative to what laboratories differ by; 0 for none.
    """

    amount: float = 1.0

    @property
    def is_varying(self) -> bool:
        """In training, unless there is nothing to vary by."""
        return self.training and self.amount > 0


def variations(decoder: nn.Module) -> Iterator[Augmentation]:
    """The layers of a decoder that vary."""
    return (module for module in decoder.modules() if isinstance(module, Augmentation))


class TokenDropout(RandomLayer):
    """The tokens of every other patch, at random, put to their mean in training.

    Tokens alone soon tell most of what there is to tell, and the image would be left with little to
    learn from. Where tokens are missing it has to be read (ModDrop, Neverova et al. 2016,
    arXiv:1501.00102).
    """

    def forward(self, tokens_BTTD: Tensor) -> Tensor:
        """(B, T, T, D) standardised tokens to the same shape."""
        if not self.training:
            return tokens_BTTD
        return tokens_BTTD * (self.draw(tokens_BTTD, 1, 1, 1) > 0)

"""Exponential moving average of a decoder's weights; it often generalises better than the last."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from virchow_st.models.decoders.base import Decoder


class RunningMean:
    """Exponential moving average of a decoder's weights (Polyak & Juditsky 1992; `--ema`).

    At step t the average moves by ``1 - min(decay, (1 + t)/(10 + t))`` towards the weights, so that
    the random initial weights are soon forgotten.

    Args:
        decoder: Decoder whose weights are averaged.
        decay: Weight of the previous average at each step, 0 to 1.

    Attributes:
        decoder: Copy of the decoder with the averaged weights.
    """

    def __init__(self, decoder: Decoder, decay: float) -> None:
        self.decay = decay
        self.decoder = copy.deepcopy(decoder).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, decoder: Decoder, step: int) -> None:
        """Update the average after an optimiser step; steps are counted from 0 over the run."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mean: list[Tensor] = list(self.decoder.parameters())
        now: list[Tensor] = list(decoder.parameters())
        torch._foreach_lerp_(mean, now, 1.0 - decay)

"""How long an epoch is, and the learning rate of every step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from virchow_st.config import TrainConfig

# An epoch is one pass over the training patches, or as many as make this many optimiser steps: two
# small slides give a step or two a pass, and a recipe written in epochs would end before it began.
_LEAST_STEPS_PER_EPOCH = 8


@dataclass(frozen=True)
class Schedule:
    """Steps and learning rates of a run.

    Attributes:
        passes: over the training patches, an epoch.
        steps_per_epoch: optimiser steps.
        warmup: steps of linear warm-up.
        total: steps of the whole run.
    """

    passes: int
    steps_per_epoch: int
    warmup: int
    total: int

    @classmethod
    def of(cls, config: TrainConfig, n_patches: int) -> Schedule:
        """Schedule for so many training patches."""
        per_step = config.batch_size * config.accumulate
        passes = math.ceil(_LEAST_STEPS_PER_EPOCH * per_step / n_patches)
        n_batches = math.ceil(passes * n_patches / config.batch_size)
        steps = math.ceil(n_batches / config.accumulate)
        return cls(passes, steps, config.warmup_epochs * steps, config.epochs * steps)

    def share(self, step: int) -> float:
        """Share of the peak learning rate: linear warm-up, then a cosine to zero."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.total - self.warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * done))

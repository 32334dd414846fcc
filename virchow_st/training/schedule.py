"""Length of an epoch, and learning rate of every step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from virchow_st.config import TrainConfig

# An epoch is one pass over the training patches, or as many passes as give this number of optimiser
# steps: with two small slides a pass is only a few steps, too few for settings in epochs.
_LEAST_STEPS_PER_EPOCH = 16


@dataclass(frozen=True)
class Schedule:
    """Steps and learning rates of a run.

    Attributes:
        passes: Passes over the training patches per epoch.
        steps_per_epoch: Optimiser steps per epoch.
        warmup: Steps of linear warm-up.
        total: Steps of the whole run.

    Example:
        >>> config = TrainConfig(batch_size=8, accumulate=4, epochs=30, warmup_epochs=2)
        >>> schedule = Schedule.of(config, n_patches=640)
        >>> schedule.steps_per_epoch, schedule.total
        (20, 600)
        >>> [round(schedule.share(step), 3) for step in (0, 39, 320, 599)]
        [0.025, 1.0, 0.5, 0.0]
    """

    passes: int
    steps_per_epoch: int
    warmup: int
    total: int

    @classmethod
    def of(cls, config: TrainConfig, n_patches: int) -> Schedule:
        """Build the schedule for a number of training patches."""
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

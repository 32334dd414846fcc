"""A batch as the trainer takes it, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from virchow_st.models.losses.base import Counts
from virchow_st.run.split import Member
from virchow_st.training.dataset import BatchPlan


@dataclass(frozen=True)
class DeviceBatch:
    """Patches on the decoder's device.

    Attributes:
        members: which patches, (B,).
        tokens: (B, T, T, D) float16.
        image: (B, 256, 256, 3) uint8, or None where the decoder does not look at it.
        counts: UMIs of the panel's genes: NumPy's arrays on a CPU, the device's elsewhere.
        tissue_mask: (B, 128, 128) bool.
    """

    members: tuple[Member, ...]
    tokens: Tensor
    image: Tensor | None
    counts: Counts
    tissue_mask: Tensor


class Feed(Protocol):
    """Where batches come from."""

    def batches(self, plans: Sequence[BatchPlan]) -> Iterator[DeviceBatch]:
        """A batch for each plan, in order; each is good until the next one is asked for."""

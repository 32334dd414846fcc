"""A batch on the decoder's device, and the interface of feeds."""

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
    """A batch of patches on the decoder's device.

    Attributes:
        members: (B,) patches.
        tokens: (B, T, T, D) float16.
        image: (B, 256, 256, 3) uint8 RGB, or None if the decoder does not use it.
        counts: Sparse UMI counts of the panel's genes: NumPy arrays on a CPU, tensors on a GPU.
        tissue_mask: (B, 128, 128) bool, True = tissue.
        exposure: (B, 128, 128) float32, 0 outside tissue; ``tissue_mask`` if it is 1 in all tissue.
        measured: (B, G) bool on the CPU, whether each patch's store measured each gene; None if all
            did.
    """

    members: tuple[Member, ...]
    tokens: Tensor
    image: Tensor | None
    counts: Counts
    tissue_mask: Tensor
    exposure: Tensor
    measured: Tensor | None = None


class Feed(Protocol):
    """Source of batches."""

    def batches(self, plans: Sequence[BatchPlan]) -> Iterator[DeviceBatch]:
        """Iterate over a batch per plan, in order; each is valid until the next is requested."""

"""What an objective and a balance are to the trainer."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from virchow_st.models.losses.targets import BatchCounts


@dataclass(frozen=True)
class DeviceCounts:
    """`BatchCounts` that lie on a device already.

    Attributes:
        start: (B·G + 1,) int64.
        position: (n,) int16; positions stay below 2¹⁴.
        count: (n,) float32.
        shape: (B, G, R, C).
    """

    start: Tensor
    position: Tensor
    count: Tensor
    shape: tuple[int, int, int, int]


Counts = BatchCounts | DeviceCounts


class Objective(nn.Module):
    """A loss at each scale, and the rates that a decoder's output stands for.

    Its parameters, if it has any, are learned with the decoder's and travel in the checkpoint.

    Attributes:
        scales_um: supervised bin sides in increasing order, µm.
        train_rate: (G,) mean UMIs of a tissue bin in training.
        initial_bias: (G,) the decoder's output bias to begin with, which stands for those means.
    """

    scales_um: tuple[int, ...]
    train_rate: Tensor
    initial_bias: Tensor

    @abstractmethod
    def rate(self, output_BGRC: Tensor) -> Tensor:
        """Expected UMIs per 2 µm bin, from the decoder's output."""

    @abstractmethod
    def forward(self, output_BGRC: Tensor, counts: Counts, tissue_mask_BRC: Tensor) -> Tensor:
        """Loss at each scale, (S,), ≥ 0 and at least float32.

        Args:
            output_BGRC: (B, G, 128, 128) the decoder's output.
            counts: UMIs of the same patches and genes; `DeviceCounts` only where the output is on
                a GPU.
            tissue_mask_BRC: (B, 128, 128) bool; what lies outside does not count.
        """


def on_device(counts: Counts, device: torch.device) -> DeviceCounts:
    """Counts on a device; those that are there stay as they are."""
    if isinstance(counts, DeviceCounts):
        return counts
    return DeviceCounts(
        start=torch.from_numpy(counts.start).to(device, non_blocking=True),
        position=torch.from_numpy(counts.position.view("i2")).to(device, non_blocking=True),
        count=torch.from_numpy(counts.count).to(device, non_blocking=True),
        shape=counts.shape,
    )


def dense_counts(counts: Counts, device: torch.device) -> Tensor:
    """(B, G, R, C) float32 UMIs on a device; only the non-zeros travel there."""
    there = on_device(counts, device)
    B, G, R, C = there.shape
    maps = torch.arange(B * G, device=device) * (R * C)
    n = len(there.count)
    first = torch.repeat_interleave(maps, there.start.diff(), output_size=n)
    dense = torch.zeros(there.shape, device=device)
    dense.view(-1)[first + there.position] = there.count
    return dense


class Balance(nn.Module):
    """How much each task's loss weighs.

    Attributes:
        weights: (n_tasks,) positive.
        needs_gradient_norms: whether `update` reads them.
    """

    weights: Tensor
    needs_gradient_norms: bool

    @abstractmethod
    def update(self, losses: Tensor, gradient_norms: Tensor | None) -> None:
        """Move the weights by one step; called at every optimiser step.

        Args:
            losses: (n_tasks,) unweighted and positive.
            gradient_norms: (n_tasks,) ``‖∇_W L_i‖`` of the unweighted losses, or None where they
                are not needed.
        """

"""What an objective and a balance are to the trainer."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from virchow_st.counts import BatchCounts


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
    def forward(self, output_BGRC: Tensor, counts: BatchCounts, tissue_mask_BRC: Tensor) -> Tensor:
        """Loss at each scale, (S,), ≥ 0 and at least float32.

        Args:
            output_BGRC: (B, G, 128, 128) the decoder's output.
            counts: UMIs of the same patches and genes.
            tissue_mask_BRC: (B, 128, 128) bool; what lies outside does not count.
        """


def dense_counts(counts: BatchCounts, device: torch.device) -> Tensor:
    """(B, G, R, C) float32 UMIs on a device; only the non-zeros travel there."""
    dense = torch.zeros(counts.shape, device=device)
    cells = torch.from_numpy(counts.cells()).to(device)
    dense.view(-1)[cells] = torch.from_numpy(counts.count).to(device)
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

"""What an objective and a balance are to the trainer."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn


class Objective(nn.Module):
    """A loss at each scale, and the rates that a decoder's output stands for.

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
    def forward(self, output_BGRC: Tensor, counts_BGRC: Tensor, tissue_mask_BRC: Tensor) -> Tensor:
        """Loss at each scale, (S,), at least float32.

        Args:
            output_BGRC: (B, G, 128, 128) the decoder's output.
            counts_BGRC: (B, G, 128, 128) UMIs.
            tissue_mask_BRC: (B, 128, 128) bool; what lies outside does not count.
        """


class Balance(nn.Module):
    """How much each task's loss weighs.

    Attributes:
        weights: (n_tasks,) positive, summing to their number.
        needs_gradient_norms: whether `update` is to be called at every optimiser step.
    """

    weights: Tensor
    needs_gradient_norms: bool

    @abstractmethod
    def update(self, losses: Tensor, gradient_norms: Tensor) -> None:
        """Move the weights by one step.

        Args:
            losses: (n_tasks,) unweighted and positive.
            gradient_norms: (n_tasks,) ``‖∇_W L_i‖`` of the unweighted losses.
        """

"""The optimiser: Muon for matrices, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from virchow_st.models.decoders.base import Decoder

_MOMENTUM = 0.95
# Coefficients of the polynomial that drives singular values towards 1 within five steps.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_N_ITERATIONS = 5
# Makes the root mean square of an update about that of AdamW's, so that both take one learning
# rate (Liu et al. 2025, arXiv:2502.16982).
_ADAMW_RMS = 0.2


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) in the groups marked ``is_muon``, AdamW in the others.

    The update of a weight matrix is its momentum made orthogonal, so that all directions of the
    matrix move by the same amount, also those with small gradients; this takes fewer steps than
    AdamW. Convolutions are treated as matrices with one row per output channel. (K. Jordan et al.,
    "Muon: an optimizer for hidden layers in neural networks", 2024,
    kellerjordan.github.io/posts/muon.) Args: groups: parameter groups, each with ``lr`` and
    ``weight_decay``; those with ``is_muon`` hold parameters of two or more dimensions. fused: as
    AdamW takes it.
    """

    def __init__(self, groups: list[dict[str, Any]], fused: bool = False) -> None:
        super().__init__([{"is_muon": False, **group} for group in groups], fused=fused)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; the gradients of Muon's parameters are None afterwards."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["is_muon"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_muon(parameter, group["lr"], group["weight_decay"])
        super().step()  # passes over parameters without a gradient
        return loss

    def _step_muon(self, parameter: Tensor, lr: float, weight_decay: float) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:  # `step` because AdamW's loading of a state looks for it
            state["step"] = torch.zeros(())
            state["momentum"] = torch.zeros_like(parameter)
        state["step"] += 1
        momentum: Tensor = state["momentum"]
        momentum.lerp_(gradient, 1 - _MOMENTUM)
        update = orthogonal(gradient.lerp(momentum, _MOMENTUM).flatten(1))  # Nesterov's
        update *= _ADAMW_RMS * max(update.shape) ** 0.5
        parameter.mul_(1 - lr * weight_decay).add_(update.view_as(parameter), alpha=-lr)
        parameter.grad = None


def orthogonal(matrix: Tensor) -> Tensor:
    """Approximate U·Vᵀ of a matrix U·S·Vᵀ by Newton-Schulz iterations in float32.

    Singular values of at least a thousandth of the largest end between 0.7 and 1.2, which is close
    enough to 1 for training (Jordan et al. 2024).
    """
    x = matrix.float()
    x = x / x.norm().clamp(min=1e-12)
    is_tall = x.shape[0] > x.shape[1]
    if is_tall:
        x = x.T
    for _ in range(_N_ITERATIONS):
        gram = x @ x.T
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return (x.T if is_tall else x).to(matrix.dtype)


def matrices(decoder: Decoder) -> list[nn.Parameter]:
    """Weights that mix channels (linear layers, convolutions, attention), except those of the head.

    Left out are the head, whose rows are genes and need not be orthogonal; depthwise convolutions,
    which have one small filter per channel and no matrix; and position embeddings, which do not map
    channels to channels.
    """
    found = []
    for name, parameter in decoder.named_parameters():
        is_of_layer = "." in name and not name.startswith("head.")
        is_depthwise = parameter.ndim == 4 and parameter.shape[1] == 1
        if is_of_layer and parameter.ndim >= 2 and not is_depthwise:
            found.append(parameter)
    return found

"""How much each scale's loss weighs: GradNorm, or all the same."""

from __future__ import annotations

import torch
from torch import Tensor

from virchow_st.losses.base import Balance

_SMALLEST_WEIGHT = 1e-3


class Equal(Balance):
    """Every task weighs 1."""

    needs_gradient_norms = False

    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.ones(n_tasks))

    def update(self, losses: Tensor, gradient_norms: Tensor) -> None:
        """Nothing to learn."""


class GradNorm(Balance):
    """Weights that let every task train at the same rate (Chen et al. 2018, arXiv:1711.02257).

    With ``g_i`` the norm of task i's gradient at the last shared layer, ``G_i = w_i·g_i``, and
    ``r_i`` its relative inverse training rate ``(L_i/L_i(0)) / mean_j(L_j/L_j(0))``, the weights
    move to lower ``Σ|G_i - mean(G)·r_i^α|`` with the target held constant. The gradient of that
    is ``sign(G_i - target_i)·g_i``, so no second backward pass is needed. The weights stay
    positive and sum to the number of tasks.

    Args:
        n_tasks: number of tasks.
        alpha: strength of the pull towards equal rates (1.5 in the paper).
        lr: learning rate of Adam on the weights (0.025 in the paper).
    """

    needs_gradient_norms = True
    first_losses: Tensor
    m: Tensor
    v: Tensor
    t: Tensor

    def __init__(self, n_tasks: int, alpha: float = 1.5, lr: float = 0.025) -> None:
        super().__init__()
        self.alpha = alpha
        self.lr = lr
        self.register_buffer("weights", torch.ones(n_tasks))
        self.register_buffer("first_losses", torch.full((n_tasks,), torch.nan))
        # Adam's moments, as buffers, so that they travel with the checkpoint.
        self.register_buffer("m", torch.zeros(n_tasks))
        self.register_buffer("v", torch.zeros(n_tasks))
        self.register_buffer("t", torch.zeros(()))

    @torch.no_grad()
    def update(self, losses: Tensor, gradient_norms: Tensor) -> None:
        """One step of Adam on the weights."""
        if torch.isnan(self.first_losses).any():
            self.first_losses.copy_(losses)
        ratio = losses / self.first_losses
        weighted = self.weights * gradient_norms
        target = weighted.mean() * (ratio / ratio.mean()) ** self.alpha
        self._adam_step(torch.sign(weighted - target) * gradient_norms)
        self.weights.clamp_(min=_SMALLEST_WEIGHT)
        self.weights.mul_(len(self.weights) / self.weights.sum())

    def _adam_step(self, gradient: Tensor, beta1: float = 0.9, beta2: float = 0.999) -> None:
        self.t += 1
        self.m.lerp_(gradient, 1 - beta1)
        self.v.lerp_(gradient**2, 1 - beta2)
        m_hat = self.m / (1 - beta1**self.t)
        v_hat = self.v / (1 - beta2**self.t)
        self.weights -= self.lr * m_hat / (v_hat.sqrt() + 1e-8)


def gradient_norms(losses: Tensor, weight: Tensor) -> Tensor:
    """``‖∂L_i/∂W‖`` of each loss at the shared weight, (n_tasks,), detached; keeps the graph."""
    norms = [torch.autograd.grad(loss, weight, retain_graph=True)[0].norm() for loss in losses]
    return torch.stack(norms).detach()

"""How much each scale's loss weighs: GradNorm, uncertainty, or all the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from virchow_st.models.losses.base import Balance

_SMALLEST_WEIGHT = 1e-3


class Equal(Balance):
    """Every task weighs 1."""

    needs_gradient_norms = False

    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.ones(n_tasks))

    def update(self, losses: Tensor, gradient_norms: Tensor | None) -> None:
        """Nothing to learn."""


class _Learned(Balance):
    """Weights that Adam moves (Kingma & Ba 2015), as buffers, so that checkpoints hold all of it.

    Args:
        n_tasks: number of tasks.
        lr: Adam's learning rate.
    """

    m: Tensor
    v: Tensor
    t: Tensor

    def __init__(self, n_tasks: int, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.register_buffer("weights", torch.ones(n_tasks))
        self.register_buffer("m", torch.zeros(n_tasks))
        self.register_buffer("v", torch.zeros(n_tasks))
        self.register_buffer("t", torch.zeros(()))

    def _adam_step(self, gradient: Tensor, beta1: float = 0.9, beta2: float = 0.999) -> Tensor:
        """What to take from the values that ``gradient`` is the gradient of."""
        self.t += 1
        self.m.lerp_(gradient, 1 - beta1)
        self.v.lerp_(gradient**2, 1 - beta2)
        m_hat = self.m / (1 - beta1**self.t)
        v_hat = self.v / (1 - beta2**self.t)
        return self.lr * m_hat / (v_hat.sqrt() + 1e-8)


class GradNorm(_Learned):
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

    def __init__(self, n_tasks: int, alpha: float = 1.5, lr: float = 0.025) -> None:
        super().__init__(n_tasks, lr)
        self.alpha = alpha
        self.register_buffer("first_losses", torch.full((n_tasks,), torch.nan))

    @torch.no_grad()
    def update(self, losses: Tensor, gradient_norms: Tensor | None) -> None:
        """One step of Adam on the weights."""
        assert gradient_norms is not None
        is_first = torch.isnan(self.first_losses)  # asked of the device without waiting for it
        self.first_losses.copy_(torch.where(is_first.any(), losses, self.first_losses))
        ratio = losses / self.first_losses
        weighted = self.weights * gradient_norms
        target = weighted.mean() * (ratio / ratio.mean()) ** self.alpha
        self.weights -= self._adam_step(torch.sign(weighted - target) * gradient_norms)
        self.weights.clamp_(min=_SMALLEST_WEIGHT)
        self.weights.mul_(len(self.weights) / self.weights.sum())


class Uncertainty(_Learned):
    """Weights from a learned dispersion of each task (Kendall et al. 2018, arXiv:1705.07115).

    A loss that is a mean negative log-likelihood, or half a deviance, is joined with a dispersion
    ``φ_i = exp(s_i)``: the total is ``Σ exp(-s_i)·L_i + s_i/2`` (for half deviances that is the
    extended quasi-likelihood of Nelder & Pregibon 1987). Its gradient in ``s_i`` is
    ``½ - exp(-s_i)·L_i``, so that each weighted loss is drawn to ½, and the weights, ``exp(-s_i)``,
    need not sum to anything.

    Args:
        n_tasks: number of tasks.
        lr: learning rate of Adam on ``s_i``; GradNorm's.
    """

    needs_gradient_norms = False
    log_dispersion: Tensor

    def __init__(self, n_tasks: int, lr: float = 0.025) -> None:
        super().__init__(n_tasks, lr)
        self.register_buffer("log_dispersion", torch.zeros(n_tasks))

    @torch.no_grad()
    def update(self, losses: Tensor, gradient_norms: Tensor | None) -> None:
        """One step of Adam on the dispersions."""
        self.log_dispersion -= self._adam_step(0.5 - self.weights * losses)
        self.weights.copy_((-self.log_dispersion).exp())


def gradient_norms(
    losses: Tensor, weight: Tensor, add_up: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """``‖∂L_i/∂W‖`` of each loss at the shared weight, (n_tasks,), detached; keeps the graph.

    Args:
        losses: (n_tasks,).
        weight: W.
        add_up: adds the gradients (n_tasks, …) of losses that are parts of a whole; the norm of a
            sum is not the sum of norms.
    """
    gradients = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses]
    if add_up is not None:
        gradients = list(add_up(torch.stack(gradients)))
    return torch.stack([gradient.norm() for gradient in gradients]).detach()

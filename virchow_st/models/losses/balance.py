"""Weights of the losses of the scales: GradNorm, uncertainty weighting, or equal weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from virchow_st.models.losses.base import Balance

_SMALLEST_WEIGHT = 1e-3


class Equal(Balance):
    """Every task has weight 1."""

    needs_gradient_norms = False

    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.ones(n_tasks))

    def update(self, losses: Tensor, gradient_norms: Tensor | None) -> None:
        """Do nothing; the weights are constant."""


class _Learned(Balance):
    """Weights learned with Adam (Kingma & Ba 2015).

    Weights and Adam's state are buffers, so that checkpoints contain them.

    Args:
        n_tasks: Number of tasks.
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
        """Return Adam's step for a gradient, to be subtracted from the learned values."""
        self.t += 1
        self.m.lerp_(gradient, 1 - beta1)
        self.v.lerp_(gradient**2, 1 - beta2)
        m_hat = self.m / (1 - beta1**self.t)
        v_hat = self.v / (1 - beta2**self.t)
        return self.lr * m_hat / (v_hat.sqrt() + 1e-8)


class GradNorm(_Learned):
    """Weights that let all tasks train at the same rate (Chen et al. 2018, arXiv:1711.02257).

    ``g_i`` is the norm of task i's gradient at the last shared layer, ``G_i = w_i·g_i``, and
    ``r_i = (L_i/L_i(0)) / mean_j(L_j/L_j(0))`` the relative inverse training rate. The weights
    minimise ``Σ|G_i - target_i|`` with ``target_i = mean(G)·r_i^α`` held constant. The gradient of
    this sum is ``sign(G_i - target_i)·g_i``, so no second backward pass is needed. The weights stay
    positive and sum to the number of tasks.

    Args:
        n_tasks: Number of tasks.
        alpha: Strength of the pull towards equal training rates, α (1.5 in the paper).
        lr: Learning rate of Adam on the weights (0.025 in the paper).

    Example:
        The task with the smaller gradient norm gains weight:

        >>> balance = GradNorm(2)
        >>> balance.update(losses=torch.tensor([1.0, 1.0]), gradient_norms=torch.tensor([4.0, 1.0]))
        >>> balance.weights
        tensor([0.9750, 1.0250])
    """

    needs_gradient_norms = True
    first_losses: Tensor

    def __init__(self, n_tasks: int, alpha: float = 1.5, lr: float = 0.025) -> None:
        super().__init__(n_tasks, lr)
        self.alpha = alpha
        self.register_buffer("first_losses", torch.full((n_tasks,), torch.nan))

    @torch.no_grad()
    def update(self, losses: Tensor, gradient_norms: Tensor | None) -> None:
        """Take one step of Adam on the weights."""
        assert gradient_norms is not None
        is_first = torch.isnan(self.first_losses)  # stays on the device, so nothing waits for it
        self.first_losses.copy_(torch.where(is_first.any(), losses, self.first_losses))
        ratio = losses / self.first_losses
        weighted = self.weights * gradient_norms
        target = weighted.mean() * (ratio / ratio.mean()) ** self.alpha
        self.weights -= self._adam_step(torch.sign(weighted - target) * gradient_norms)
        self.weights.clamp_(min=_SMALLEST_WEIGHT)
        self.weights.mul_(len(self.weights) / self.weights.sum())


class Uncertainty(_Learned):
    """Weights from a learned dispersion per task (Kendall et al. 2018, arXiv:1705.07115).

    Each loss is a mean negative log-likelihood or half a deviance, and gets a dispersion
    ``φ_i = exp(s_i)``. The total is ``Σ exp(-s_i)·L_i + s_i/2``; for half deviances this is the
    extended quasi-likelihood of Nelder & Pregibon 1987. Its gradient with respect to ``s_i`` is
    ``½ - exp(-s_i)·L_i``, so each weighted loss is driven to ½. The weights ``exp(-s_i)`` have no
    fixed sum.

    Args:
        n_tasks: Number of tasks.
        lr: Learning rate of Adam on ``s_i``; the default is GradNorm's.

    Example:
        The task with the larger loss loses weight:

        >>> balance = Uncertainty(2)
        >>> balance.update(losses=torch.tensor([2.0, 0.1]), gradient_norms=None)
        >>> balance.weights
        tensor([0.9753, 1.0253])
    """

    needs_gradient_norms = False
    log_dispersion: Tensor

    def __init__(self, n_tasks: int, lr: float = 0.025) -> None:
        super().__init__(n_tasks, lr)
        self.register_buffer("log_dispersion", torch.zeros(n_tasks))

    @torch.no_grad()
    def update(self, losses: Tensor, gradient_norms: Tensor | None) -> None:
        """Take one step of Adam on the dispersions."""
        self.log_dispersion -= self._adam_step(0.5 - self.weights * losses)
        self.weights.copy_((-self.log_dispersion).exp())


def gradient_norms(
    losses: Tensor, weight: Tensor, add_up: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Norm ``‖∂L_i/∂W‖`` of each loss's gradient at a shared weight; the graph is kept.

    Args:
        losses: (n_tasks,) losses.
        weight: Shared weight W.
        add_up: Sums gradients (n_tasks, …) over the processes that share a batch; needed because
            the norm of a sum is not the sum of norms. None in a single process.

    Returns:
        (n_tasks,) norms, detached.

    Example:
        >>> weight = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> losses = torch.stack([3 * weight[0], (weight**2).sum()])
        >>> gradient_norms(losses, weight)
        tensor([3.0000, 4.4721])
    """
    gradients = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses]
    if add_up is not None:
        gradients = list(add_up(torch.stack(gradients)))
    return torch.stack([gradient.norm() for gradient in gradients]).detach()

"""The balance of the scales' losses: GradNorm, uncertainty weighting and equal weights."""

import pytest
import torch

from virchow_st.models.losses import build_balance
from virchow_st.models.losses.balance import GradNorm, Uncertainty, gradient_norms


def test_step_follows_autograd_of_the_papers_loss():
    """``Σ|w_i·g_i - target_i|`` differentiated by autograd with the target held constant."""
    torch.manual_seed(0)
    balance = GradNorm(4)
    balance.update(torch.tensor([3.0, 1.0, 0.5, 2.0]), torch.ones(4))
    seen = []
    balance._adam_step = lambda gradient: seen.append(gradient.clone()) or torch.zeros(4)
    losses, norms = torch.tensor([1.0, 0.9, 0.1, 2.5]), torch.tensor([0.3, 4.0, 1.0, 0.02])

    w = balance.weights.clone().requires_grad_()
    ratio = losses / torch.tensor([3.0, 1.0, 0.5, 2.0])
    target = ((w * norms).mean() * (ratio / ratio.mean()) ** 1.5).detach()
    (w * norms - target).abs().sum().backward()

    balance.update(losses, norms)
    torch.testing.assert_close(seen[0], w.grad)
    assert (seen[0] > 0).any()
    assert (seen[0] < 0).any()


def test_adam_is_torchs():
    torch.manual_seed(0)
    balance = GradNorm(3)
    w = torch.ones(3, requires_grad=True)
    adam = torch.optim.Adam([w], lr=0.025)
    for _ in range(20):
        w.grad = torch.randn(3)
        balance.weights -= balance._adam_step(w.grad)
        adam.step()
    torch.testing.assert_close(balance.weights, w.detach())


def test_the_task_that_lags_behind_gains_weight():
    """Equal gradients; task 0 has kept its loss, task 1 has lost most of it."""
    balance = GradNorm(2)
    balance.update(torch.tensor([1.0, 1.0]), torch.ones(2))
    for _ in range(10):
        balance.update(torch.tensor([1.0, 0.2]), torch.ones(2))
    assert balance.weights[0] > 1.1
    assert balance.weights[1] < 0.9


def test_without_alpha_the_weighted_gradients_become_equal():
    balance = GradNorm(3, alpha=0.0)
    norms = torch.tensor([0.5, 1.0, 4.0])
    for _ in range(3000):
        balance.update(torch.ones(3), norms)
    weighted = balance.weights * norms
    assert weighted.max() / weighted.min() < 1.25
    expected = 3 * (1 / norms) / (1 / norms).sum()
    torch.testing.assert_close(balance.weights, expected, atol=0.06, rtol=0.1)


@pytest.mark.parametrize("factor", [1.0, 1e3, 1e-3])
def test_weights_stay_positive_and_sum_to_their_number(factor):
    torch.manual_seed(0)
    balance = GradNorm(4)
    for _ in range(200):
        balance.update(torch.rand(4) * factor + 1e-6, torch.rand(4) ** 4 * 10)
        assert balance.weights.min() > 0
        assert balance.weights.sum().item() == pytest.approx(4, rel=1e-5)


def train_toy(balance, scales, steps=400):
    """The paper's toy (§ 4) made linear: tasks of the same form that differ in scale alone.

    Task i is ``σ_i²·‖W_i - target_i‖²`` on its own rows of the shared weight, so under gradient
    descent it trains at a rate proportional to ``w_i·σ_i²``. Returns each task's loss ratio.
    """
    torch.manual_seed(0)
    target = torch.nn.functional.normalize(torch.randn(len(scales), 30))
    weight = torch.zeros_like(target, requires_grad=True)
    factor = torch.tensor(scales) ** 2
    for _ in range(steps):
        losses = factor * ((weight - target) ** 2).sum(1)
        norms = gradient_norms(losses, weight) if balance.needs_gradient_norms else None
        balance.update(losses.detach(), norms)
        (balance.weights * losses).sum().backward()
        with torch.no_grad():
            weight -= 1e-3 * weight.grad
            weight.grad = None
    return losses.detach() / factor


def test_toy_of_the_paper_tasks_of_unlike_scale_train_alike():
    scales = (1.0, 3.0)
    balance = GradNorm(2)
    balanced = train_toy(balance, scales)
    equal = train_toy(build_balance("equal", 2), scales)
    assert balance.weights[0] > 5 * balance.weights[1]  # inversely to the tasks' scale
    assert equal[0] > 100 * equal[1]
    assert balanced.max() / balanced.min() < 1.3


def test_gradient_norms_are_those_of_separate_backward_passes():
    torch.manual_seed(0)
    weight = torch.randn(3, 4, requires_grad=True)
    x = torch.randn(5, 4)
    losses = torch.stack([((x @ weight.T) ** p).mean() for p in (2, 4)])
    norms = gradient_norms(losses, weight)
    assert not norms.requires_grad
    assert weight.grad is None
    for i, p in enumerate((2, 4)):
        twin = weight.detach().clone().requires_grad_()
        ((x @ twin.T) ** p).mean().backward()
        torch.testing.assert_close(norms[i], twin.grad.norm())
    losses.sum().backward()  # the graph is still there
    assert weight.grad is not None


@pytest.mark.parametrize("name", ["gradnorm", "uncertainty"])
def test_state_travels_with_the_checkpoint(name):
    torch.manual_seed(0)
    first, steps = build_balance(name, 3), torch.rand(6, 2, 3) + 0.1
    for losses, norms in steps[:3]:
        first.update(losses, norms)
    second = build_balance(name, 3)
    second.load_state_dict(first.state_dict())
    for losses, norms in steps[3:]:
        first.update(losses, norms)
        second.update(losses, norms)
    assert torch.equal(first.weights, second.weights)
    assert not torch.equal(first.weights, torch.ones(3))


def test_uncertainty_steps_follow_autograd_of_the_papers_total():
    balance = Uncertainty(3)
    s = torch.zeros(3, requires_grad=True)
    adam = torch.optim.Adam([s], lr=0.025)
    for losses in torch.rand(20, 3) * 2:
        adam.zero_grad()
        ((-s).exp() * losses + s / 2).sum().backward()
        adam.step()
        balance.update(losses, None)
    torch.testing.assert_close(balance.log_dispersion, s.detach())
    torch.testing.assert_close(balance.weights, (-s.detach()).exp())


def test_uncertainty_draws_every_weighted_loss_to_a_half():
    balance, losses = Uncertainty(4), torch.tensor([0.1, 0.4, 2.0, 5.0])
    for _ in range(1000):
        balance.update(losses, None)
    torch.testing.assert_close(balance.weights * losses, torch.full((4,), 0.5), atol=0.01, rtol=0)
    assert not balance.needs_gradient_norms


def test_equal_weighs_all_the_same_and_unknown_names_are_refused():
    equal = build_balance("equal", 3)
    equal.update(torch.rand(3), None)
    assert equal.weights.tolist() == [1, 1, 1]
    assert not equal.needs_gradient_norms
    with pytest.raises(ValueError, match="expected gradnorm, uncertainty or equal, got 'dwa'"):
        build_balance("dwa", 3)

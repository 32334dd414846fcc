"""The optimiser against the definition of Muon, against torch's AdamW, and saved and loaded."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from virchow_st.models.decoders import build_decoder
from virchow_st.training.muon import Muon, matrices, orthogonal


@pytest.mark.parametrize("shape", [(8, 8), (6, 40), (40, 6), (1, 9)])
def test_orthogonal_is_near_the_polar_factor(shape: tuple[int, int]) -> None:
    """Against an exact singular value decomposition in float64."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=shape)
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(torch.from_numpy(matrix).float()).double().numpy()
    values = np.linalg.svd(found, compute_uv=False)
    assert values.min() > 0.6
    assert values.max() < 1.25
    assert (found * (u @ vt)).sum() / np.linalg.norm(found) / np.sqrt(min(shape)) > 0.97
    larger = orthogonal(torch.from_numpy(1e4 * matrix).float()).double().numpy()
    np.testing.assert_allclose(larger, found, atol=1e-4)


def test_a_gradient_of_zeros_moves_nothing_but_by_decay() -> None:
    weight = nn.Parameter(torch.ones(3, 4))
    optimizer = Muon([{"params": [weight], "is_muon": True, "lr": 0.1, "weight_decay": 0.5}])
    weight.grad = torch.zeros(3, 4)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((3, 4), 0.95))


def test_a_step_is_as_defined() -> None:
    """Two steps written out: Nesterov momentum, orthogonal, scaled to 0.2·√max(rows, columns)."""
    rng = np.random.default_rng(1)
    weight = nn.Parameter(torch.zeros(4, 2, 3, 3))
    optimizer = Muon([{"params": [weight], "is_muon": True, "lr": 0.01, "weight_decay": 0.0}])
    momentum, expected = np.zeros((4, 18)), np.zeros((4, 18))
    for _ in range(2):
        gradient = rng.normal(size=(4, 18))
        momentum = 0.95 * momentum + 0.05 * gradient
        update = torch.from_numpy(0.05 * gradient + 0.95 * momentum).float()
        expected -= 0.01 * 0.2 * np.sqrt(18) * orthogonal(update).numpy()
        weight.grad = torch.from_numpy(gradient).float().view(4, 2, 3, 3)
        optimizer.step()
    np.testing.assert_allclose(weight.detach().numpy().reshape(4, 18), expected, atol=1e-6)


def small_net() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 2)), torch.randn(16, 5)


def take_steps(net: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer, n: int) -> None:
    for _ in range(n):
        net(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_without_muon_it_is_adamw_to_the_bit() -> None:
    nets = []
    for kind in (Muon, torch.optim.AdamW):
        net, x = small_net()
        group = {"params": list(net.parameters()), "lr": 0.01, "weight_decay": 0.1}
        take_steps(net, x, kind([group]), 5)
        nets.append(net)
    for mine, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_saved_and_loaded_it_goes_on_the_same() -> None:
    def made(net: nn.Module) -> Muon:
        weights = [p for p in net.parameters() if p.ndim == 2]
        biases = [p for p in net.parameters() if p.ndim == 1]
        common = {"lr": 0.01, "weight_decay": 0.01}
        return Muon([{"params": biases, **common}, {"params": weights, "is_muon": True, **common}])

    net, x = small_net()
    optimizer = made(net)
    take_steps(net, x, optimizer, 3)
    twin = copy.deepcopy(net)
    resumed = made(twin)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(net, x, optimizer, 3)
    take_steps(twin, x, resumed, 3)
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["fusion", "hist2st", "guided", "pixels", "img2st", "linear"])
def test_matrices_are_all_that_mixes_channels(name: str) -> None:
    zeros = torch.zeros(8)
    decoder = build_decoder(name, 16, zeros, zeros + 1, torch.zeros(3))
    found = matrices(decoder)
    assert len({id(p) for p in found}) == len(found) > 0
    named = {id(p): n for n, p in decoder.named_parameters()}
    names = {named[id(p)] for p in found}
    assert not any(n.startswith(("head", "position")) for n in names)
    left = [p for n, p in decoder.named_parameters() if n not in names]
    for parameter in left:
        is_head = parameter is decoder.head.weight
        is_depthwise = parameter.ndim == 4 and parameter.shape[1] == 1
        is_position = parameter.ndim == 2 and named[id(parameter)] == "position_NC"
        assert parameter.ndim == 1 or is_head or is_depthwise or is_position

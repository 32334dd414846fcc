"""Losses with a float exposure are those of the expected UMIs, exposure × rate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from virchow_st.models.losses import build_objective
from virchow_st.models.losses.base import Objective
from virchow_st.models.losses.factor_poisson import FactorStart
from virchow_st.models.losses.negative_binomial import negative_binomial_loss
from virchow_st.models.losses.targets import BatchCounts

SCALES = (2, 4, 8, 16)
B, G, K, SIDE = 2, 5, 3, 16
RATE = torch.linspace(0.1, 0.6, G)


@pytest.fixture
def batch() -> tuple[Tensor, BatchCounts, Tensor]:
    """Log-rates or log factors, counts, and an exposure with stripes, depths and holes."""
    rng = np.random.default_rng(201)
    output = torch.from_numpy(rng.normal(-1, 1, (B, G, SIDE, SIDE)).astype("f4"))
    rows, cols = rng.lognormal(0, 0.3, (2, B, SIDE))
    exposure = np.array([0.6, 1.7])[:, None, None] * rows[:, :, None] * cols[:, None]
    exposure[rng.random(exposure.shape) < 0.2] = 0
    exposure[0, :8, :8] = 0
    counts = rng.poisson(0.4 * np.ones((B, G, SIDE, SIDE)))
    return output, BatchCounts.of_dense(counts), torch.from_numpy(exposure.astype("f4"))


def objective_of(name: str) -> Objective:
    factors = None
    if name == "factors":
        loadings = torch.rand(G, K, generator=torch.Generator().manual_seed(0)) + 0.1
        factors = FactorStart(loadings / loadings.sum(0), torch.ones(K), torch.arange(2))
    loss = "nb" if name == "nb" else "poisson"
    return build_objective(loss, RATE, torch.ones(4, G), SCALES, factors)


def summed(x: Tensor, scale: int) -> Tensor:
    f = scale // 2
    return x.view(*x.shape[:-2], SIDE // f, f, SIDE // f, f).sum((-3, -1))


def reference(objective: Objective, name: str, output: Tensor, counts: BatchCounts, e: Tensor):
    """Losses from dense maps in float64, written out."""
    expected = output.double().exp()
    if name == "factors":
        expected = torch.einsum("gk,bkrc->bgrc", objective.loadings.double(), expected)
    expected = expected * e.double()[:, None]
    seen = torch.from_numpy(counts.dense()).double() * (e > 0)[:, None]
    losses = []
    for s, scale in enumerate(SCALES):
        rate, k = summed(expected, scale), summed(seen, scale)
        n = G * int((summed((e > 0).double(), scale) > 0).sum())
        if name == "nb":
            size = objective.log_size.double()[s].exp()
            losses.append(negative_binomial_loss(rate, k, size) / n)
            continue
        there = rate > 0
        term = torch.xlogy(k, k) - torch.xlogy(k, torch.where(there, rate, 1.0)) - k + rate
        losses.append(torch.where(there, term, 0.0).sum() / n)
    return torch.stack(losses)


@pytest.mark.parametrize("name", ["poisson", "factors", "nb"])
def test_loss_and_gradient_are_those_of_exposure_times_rate(batch, name: str) -> None:
    output, counts, exposure = batch
    objective = objective_of(name)
    output = output[:, : K if name == "factors" else G].clone().requires_grad_()
    found = objective(output, counts, exposure)
    expected = reference(objective, name, output, counts, exposure)
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=1e-6)
    weights = torch.tensor([1.0, 0.5, 2.0, 0.25])
    learned = [output, *objective.parameters()]
    mine = torch.autograd.grad((found * weights).sum(), learned)
    theirs = torch.autograd.grad((expected * weights).sum(), learned)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["poisson", "factors", "nb"])
def test_an_exposure_of_one_is_a_tissue_mask(batch, name: str) -> None:
    output, counts, exposure = batch
    output = output[:, : K if name == "factors" else G]
    mask = exposure > 0
    objective = objective_of(name)
    torch.testing.assert_close(
        objective(output, counts, mask.float()), objective(output, counts, mask), rtol=0, atol=0
    )


def test_squared_error_refuses_an_exposure(batch) -> None:
    output, counts, exposure = batch
    squared = build_objective("mse", RATE, torch.ones(4, G), SCALES)
    with pytest.raises(TypeError, match="takes a bool tissue mask only"):
        squared(output, counts, exposure)

"""The objective of a rate field of factors, against the one of dense rates."""

import numpy as np
import pytest
import torch

from virchow_st.models.losses import build_objective
from virchow_st.models.losses.base import dense_counts, genes_of, on_device
from virchow_st.models.losses.factor_poisson import FactorPoisson, FactorStart
from virchow_st.models.losses.poisson import MultiScalePoisson
from virchow_st.models.losses.targets import BatchCounts

B, G, K, SIDE = 2, 6, 3, 16
SCALES = (2, 4, 8, 16)


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    loadings = rng.dirichlet(np.full(G, 0.5), K).T.astype("f4")
    h = rng.gamma(1.0, 1.0, (B, K, SIDE, SIDE)).astype("f4")
    rate = np.einsum("gk,bkrc->bgrc", loadings, h)
    counts = rng.poisson(rate)
    mask = rng.random((B, SIDE, SIDE)) < 0.8
    start = FactorStart(
        torch.from_numpy(loadings),
        torch.from_numpy(h.mean((0, 2, 3))),
        torch.tensor([4, 1]),
    )
    objective = FactorPoisson(torch.from_numpy(rate.mean((0, 2, 3))), SCALES, start)
    return objective, torch.from_numpy(h).log(), rate, counts, torch.from_numpy(mask)


def test_loadings_are_shares(case):
    objective, *_ = case
    assert torch.allclose(objective.loadings.sum(0), torch.ones(K))
    (objective.loadings**2).sum().backward()
    with torch.no_grad():
        objective.log_loadings -= 10 * objective.log_loadings.grad
    assert torch.allclose(objective.loadings.sum(0), torch.ones(K))
    assert (objective.loadings > 0).all()


def test_rates_are_of_the_panel(case):
    objective, log_h, rate, *_ = case
    np.testing.assert_allclose(objective.rate(log_h).detach(), rate[:, [4, 1]], rtol=1e-5)
    np.testing.assert_allclose(objective.train_rate, rate.mean((0, 2, 3))[[4, 1]], rtol=1e-6)
    untrained = objective.initial_bias[None, :, None, None]
    np.testing.assert_allclose(
        objective.rate(untrained).detach()[0, :, 0, 0], rate.mean((0, 2, 3))[[4, 1]], rtol=0.2
    )


def test_the_loss_is_that_of_dense_rates(case):
    objective, log_h, _, counts, mask = case
    log_h.requires_grad_()
    sparse = BatchCounts.of_dense(counts)
    losses = objective(log_h, sparse, mask)
    dense = MultiScalePoisson(objective.gene_rate, SCALES)
    log_rate = torch.einsum("gk,bkrc->bgrc", objective.loadings, log_h.exp()).log()
    expected = dense(log_rate, sparse, mask)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    inputs = [log_h, objective.log_loadings]
    weights = torch.tensor([1.0, 0.5, 0.2, 0.1])
    found = torch.autograd.grad((weights * losses).sum(), inputs)
    wanted = torch.autograd.grad((weights * expected).sum(), inputs)
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-6)


def test_counts_of_some_genes(case):
    counts = case[3]
    sparse = BatchCounts.of_dense(counts)
    genes = torch.tensor([5, 0, 3])
    np.testing.assert_array_equal(genes_of(sparse, genes).dense(), counts[:, [5, 0, 3]])
    there = genes_of(on_device(sparse, torch.device("cpu")), genes)
    np.testing.assert_array_equal(dense_counts(there, torch.device("cpu")), counts[:, [5, 0, 3]])
    nothing = BatchCounts.of_dense(np.zeros_like(counts))
    assert not genes_of(nothing, genes).dense().any()
    np.testing.assert_array_equal(case[0].panel_counts(sparse).dense(), counts[:, [4, 1]])


def test_a_checkpoint_fits_an_objective_of_the_same_shapes(case):
    objective = case[0]
    other = build_objective(
        "poisson", torch.ones(G), torch.ones(4, G), SCALES, FactorStart.of_shape(G, K, 2)
    )
    other.load_state_dict(objective.state_dict())
    torch.testing.assert_close(other.loadings, objective.loadings)
    assert other.panel.tolist() == [4, 1]

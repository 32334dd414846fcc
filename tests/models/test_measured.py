"""Losses of batches whose patches measured different genes: an absent gene is no 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from virchow_st.models.losses import build_objective
from virchow_st.models.losses.base import DeviceCounts, Objective, on_device
from virchow_st.models.losses.factor_poisson import FactorStart
from virchow_st.models.losses.factors import factor_half_deviance
from virchow_st.models.losses.factors_gpu import ScatteredFactors
from virchow_st.models.losses.poisson import MultiScalePoisson
from virchow_st.models.losses.targets import BatchCounts

B, G, K, SIDE = 3, 4, 2, 16
SCALES = (2, 4, 8, 16)
MEASURED = torch.tensor([[True, True, False, True], [True] * 4, [True, False, False, True]])
NAMES = ("poisson", "nb", "mse", "factors")


def objective_of(name: str, genes: list[int] | None = None) -> Objective:
    """An objective of the genes, the same for each of them whichever others there are."""
    genes = list(range(G)) if genes is None else genes
    rate = torch.linspace(0.2, 0.8, G, dtype=torch.float64)[genes]
    std = torch.linspace(0.5, 2.0, 4 * G, dtype=torch.float64).view(4, G)[:, genes]
    if name != "factors":
        return build_objective(name, rate, std, SCALES)
    loadings = torch.rand(G, K, generator=torch.Generator().manual_seed(0)) + 0.1
    start = FactorStart(loadings / loadings.sum(0), torch.ones(K), torch.tensor([0, 2]))
    return build_objective("poisson", rate, std, SCALES, start)


def batch(name: str) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    rng = np.random.default_rng(0)
    channels = K if name == "factors" else G
    output = torch.from_numpy(rng.normal(0, 0.4, (B, channels, SIDE, SIDE)).astype("f4"))
    counts = rng.poisson(0.6, (B, G, SIDE, SIDE)) * MEASURED.numpy()[:, :, None, None]
    mask = torch.from_numpy(rng.random((B, SIDE, SIDE)) < 0.8)
    return output, counts, mask


@pytest.mark.parametrize("name", ["poisson", "nb", "mse"])
def test_the_loss_is_that_of_the_measured_genes_alone(name: str) -> None:
    output, counts, mask = batch(name)
    found = objective_of(name)(output, BatchCounts.of_dense(counts), mask, MEASURED)
    total, n = torch.zeros(len(SCALES)), torch.zeros(len(SCALES))
    for b in range(B):  # every patch by itself, with an objective of its own genes
        genes = MEASURED[b].nonzero()[:, 0].tolist()
        of_patch = BatchCounts.of_dense(counts[b : b + 1, genes])
        loss = objective_of(name, genes)(output[b : b + 1, genes], of_patch, mask[b : b + 1])
        sides = [s // 2 for s in SCALES]
        tissue = [mask[b].view(SIDE // s, s, SIDE // s, s).any(3).any(1).sum() for s in sides]
        size = torch.tensor([float(t) * len(genes) for t in tissue])
        total, n = total + loss * size, n + size
    torch.testing.assert_close(found, total / n, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_an_absent_gene_has_a_gradient_of_exactly_0(name: str) -> None:
    output, counts, mask = batch(name)
    objective = objective_of(name)
    output.requires_grad_()
    objective(output, BatchCounts.of_dense(counts), mask, MEASURED).sum().backward()
    if name != "factors":
        gradient = output.grad.abs().amax((2, 3))
        assert (gradient[~MEASURED] == 0).all()
        assert (gradient[MEASURED] > 0).all()
        if name == "nb":  # a gene that no patch measured has no dispersion to learn, either
            nobody = MEASURED.clone()
            nobody[:, 2] = False
            objective.zero_grad()
            objective(output, BatchCounts.of_dense(counts * 0), mask, nobody).sum().backward()
            assert (objective.log_size.grad[:, 2] == 0).all()
            assert (objective.log_size.grad[:, 0] != 0).all()
        return
    loadings = objective.loadings.detach().requires_grad_()
    only = MEASURED.clone()
    only[:, 2] = False
    loss = factor_half_deviance(
        output.detach(), loadings, BatchCounts.of_dense(counts * only.numpy()[:, :, None, None]),
        mask, torch.ones(4), SCALES, only,
    )  # fmt: skip
    loss.sum().backward()
    assert (loadings.grad[2] == 0).all()
    assert (loadings.grad[[0, 1, 3]] != 0).any(1).all()


def test_what_factors_lose_is_what_a_dense_loss_of_their_rates_loses() -> None:
    output, counts, mask = batch("factors")
    objective, direct = objective_of("factors"), objective_of("poisson")
    sparse = BatchCounts.of_dense(counts)
    rates = torch.einsum("gk,bkrc->bgrc", objective.loadings.detach(), output.exp())
    expected = direct(rates.log(), sparse, mask, MEASURED)
    torch.testing.assert_close(
        objective(output, sparse, mask, MEASURED), expected, rtol=1e-5, atol=0
    )
    on_gpu = ScatteredFactors(
        output, objective.loadings.detach(), on_device(sparse, torch.device("cpu")), mask, SCALES,
        MEASURED,
    )  # fmt: skip
    n = torch.tensor([1.0])
    on_cpu = factor_half_deviance(
        output, objective.loadings.detach(), sparse, mask, n, SCALES, MEASURED
    )
    torch.testing.assert_close(on_gpu.sums_S.float(), on_cpu, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_where_all_was_measured_nothing_changes(name: str) -> None:
    output, counts, mask = batch(name)
    sparse = BatchCounts.of_dense(counts)
    gradients = []
    for measured in (None, torch.ones(B, G, dtype=torch.bool)):
        at = output.clone().requires_grad_()
        loss = objective_of(name)(at, sparse, mask, measured)
        loss.sum().backward()
        gradients.append((loss.detach(), at.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_the_way_of_a_gpu_takes_the_same_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts on a device are divided as those of the host are."""
    from virchow_st.models.losses import poisson
    from virchow_st.models.losses.scales import tissue_bins

    output, counts, mask = batch("poisson")
    sparse = BatchCounts.of_dense(counts)
    expected = objective_of("poisson")(output, sparse, mask, MEASURED)
    kinds = []

    def dense(output: torch.Tensor, counts: DeviceCounts, *rest: object) -> torch.Tensor:
        kinds.append(type(counts))
        return poisson.dense_half_deviance(output, counts, *rest)

    monkeypatch.setattr(poisson, "implementation_on", lambda _: (tissue_bins, dense))
    there = on_device(sparse, torch.device("cpu"))
    found = objective_of("poisson")(output, there, mask, MEASURED)
    assert kinds == [DeviceCounts] * 3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_a_batch_in_which_nothing_was_measured_loses_nothing() -> None:
    output, counts, mask = batch("poisson")
    output.requires_grad_()
    objective = objective_of("poisson")
    assert isinstance(objective, MultiScalePoisson)
    nothing = torch.zeros(B, G, dtype=torch.bool)
    loss = objective(output, BatchCounts.of_dense(counts), mask, nothing)
    loss.sum().backward()
    assert loss.tolist() == [0.0] * 4
    assert (output.grad == 0).all()

"""The losses equal their definitions and have correct gradients at every scale."""

import numpy as np
import pytest
import torch
from scipy.stats import nbinom, poisson
from torch.nn.functional import poisson_nll_loss

from virchow_st.models.losses import build_objective
from virchow_st.models.losses.base import dense_counts
from virchow_st.models.losses.poisson import half_deviance
from virchow_st.models.losses.reference import plain_poisson, saturated_poisson
from virchow_st.models.losses.scales import pyramid, spread
from virchow_st.models.losses.targets import BatchCounts

SCALES = (2, 4, 8, 16)
B, G, SIDE = 2, 3, 32


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for a busy core slow down work as small as this many times over."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def patch():
    """Log-rates (fp32), counts and a ragged tissue mask that leaves whole 16 µm bins empty."""
    rng = np.random.default_rng(0)
    output = rng.normal(-1, 1, (B, G, SIDE, SIDE)).astype(np.float32)
    counts = rng.poisson(np.exp(rng.normal(-1.5, 1.5, output.shape))).astype(np.float32)
    mask = rng.random((B, SIDE, SIDE)) < 0.8
    mask[0, :11, :19] = False
    return torch.from_numpy(output), torch.from_numpy(counts), torch.from_numpy(mask)


def pooled(x, scale):
    """Sums over squares, in fp64 NumPy by reshaping."""
    x, f = np.asarray(x, np.float64), scale // 2
    return x.reshape(*x.shape[:-2], SIDE // f, f, SIDE // f, f).sum((-3, -1))


def objective_of(name, scales=SCALES):
    return build_objective(name, torch.full((G,), 0.2), torch.ones(4, G), scales)


class Fused:
    """The Poisson objective on a CPU, from dense counts."""

    def __init__(self, scales=SCALES):
        self.objective = objective_of("poisson", scales)
        self.scales_um = self.objective.scales_um

    def __call__(self, output, counts, mask):
        return self.objective(output, BatchCounts.of_dense(counts.numpy()), mask)


class Torch:
    """What the Poisson objective does on a GPU, here on the CPU."""

    def __init__(self, scales=SCALES):
        self.scales_um = objective_of("poisson", scales).scales_um

    def __call__(self, output, counts, mask):
        mask_B1RC = mask[:, None].to(output.dtype)
        n_tissue = pyramid(mask_B1RC, self.scales_um)
        n_bins = torch.stack([(n > 0).sum().clamp(min=1) * output.shape[1] for n in n_tissue])
        return half_deviance(output, counts.to(output.dtype), mask_B1RC, n_bins, self.scales_um)


both_ways = pytest.mark.parametrize("poisson", [Fused, Torch])


def loss_of(name, output, counts, mask):
    return objective_of(name)(output, BatchCounts.of_dense(counts.numpy()), mask)


@both_ways
@pytest.mark.parametrize("scale", SCALES)
def test_poisson_is_torchs_up_to_the_saturated_likelihood(patch, scale, poisson):
    output, counts, mask = patch
    loss = poisson((scale,))(output, counts, mask).item()
    m = mask[:, None].double().numpy()
    rate, count = (
        pooled(x, scale) for x in (np.exp(output.double().numpy()) * m, counts.numpy() * m)
    )
    holds = np.broadcast_to(pooled(m, scale) > 0, rate.shape)
    rate, count = torch.from_numpy(rate[holds]), torch.from_numpy(count[holds])
    nll = poisson_nll_loss(rate, count, log_input=False, eps=0.0)
    saturated = poisson_nll_loss(count, count, log_input=False, eps=1e-300)  # 0·log 0 = 0
    assert loss == pytest.approx(float(nll - saturated), rel=1e-5)


@both_ways
def test_all_scales_at_once_are_the_scales_one_by_one(patch, poisson):
    together = poisson()(*patch)
    for i, scale in enumerate(SCALES):
        torch.testing.assert_close(together[i], poisson((scale,))(*patch)[0])
    assert together.dtype == torch.float32
    shuffled = poisson((16, 2, 8, 2, 4))
    assert shuffled.scales_um == SCALES
    torch.testing.assert_close(shuffled(*patch), together)


@both_ways
def test_poisson_is_zero_where_rates_are_the_counts_and_positive_elsewhere(patch, poisson):
    _, counts, mask = patch
    counts = counts + 1
    loss = poisson()
    assert loss(counts.log(), counts, mask).abs().max() < 1e-5
    assert (loss(counts.log() + 0.1, counts, mask) > 1e-4).all()
    assert (loss(counts.log() - 0.1, counts, mask) > 1e-4).all()


@both_ways
@pytest.mark.parametrize("scales", [SCALES, (2,), (16,), (4, 16)])
def test_loss_and_gradient_equal_the_plain_formula_in_float64(patch, scales, poisson):
    output, counts, mask = patch
    weights = torch.linspace(0.5, 2, len(scales))
    output = output.requires_grad_()
    losses = poisson(scales)(output, counts, mask)
    (losses * weights).sum().backward()
    wide = output.detach().double().requires_grad_()
    plain = plain_poisson(wide, counts.double(), mask, scales)
    (plain * weights).sum().backward()
    expected = plain - saturated_poisson(counts.double(), mask, scales)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(output.grad.double(), wide.grad, rtol=1e-4, atol=1e-9)


@both_ways
@pytest.mark.parametrize("scales", [(2,), (2, 8), (2, 4, 8, 16)])
def test_gradient_equals_finite_differences(patch, scales, poisson):
    output, counts, mask = (x[1:, ..., :16, :16] for x in patch)
    output = output[:, :1].double().requires_grad_()
    torch.autograd.gradcheck(poisson(scales), (output, counts[:, :1], mask), atol=1e-7)


def test_fused_equals_torch_in_float64(patch):
    output, counts, mask = patch
    output = output.double()
    torch.testing.assert_close(Fused()(output, counts, mask), Torch()(output, counts, mask))
    assert Fused()(output, counts, mask).dtype == torch.float64


@both_ways
def test_each_scales_gradient_can_be_asked_for_before_the_whole(patch, poisson):
    """As GradNorm does."""
    output, counts, mask = patch
    output = output.requires_grad_()
    losses = poisson()(output, counts, mask)
    parts = [torch.autograd.grad(loss, output, retain_graph=True)[0] for loss in losses]
    losses.sum().backward()
    torch.testing.assert_close(sum(parts), output.grad)


def test_threads_change_nothing_bit_for_bit(patch):
    results = []
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        output = patch[0].clone().requires_grad_()
        losses = Fused()(output, *patch[1:])
        losses.sum().backward()
        results.append((losses.detach(), output.grad))
    torch.set_num_threads(1)
    for losses, gradient in results[1:]:
        assert torch.equal(losses, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_fused_takes_any_memory_layout_and_float16(patch):
    output, counts, mask = patch
    expected = Fused()(output, counts, mask)
    for laid in (output.to(memory_format=torch.channels_last), output.mT.contiguous().mT):
        laid = laid.requires_grad_()
        losses = Fused()(laid, counts, mask)
        assert torch.equal(losses, expected)
        losses.sum().backward()
        assert laid.grad.shape == laid.shape
    narrow = output.to(torch.bfloat16)
    losses = Fused()(narrow, counts, mask)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, Fused()(narrow.float(), counts, mask))


@both_ways
def test_not_a_number_is_not_hidden(patch, poisson):
    output, counts, mask = patch
    output[1, 2, 7, 9], mask[1, 7, 9] = torch.nan, True
    assert poisson()(output, counts, mask).isnan().all()


def test_batch_counts_of_dense_and_back(patch):
    counts = patch[1].numpy()
    sparse = BatchCounts.of_dense(counts)
    assert len(sparse.count) == np.count_nonzero(counts) == sparse.start[-1]
    np.testing.assert_array_equal(sparse.dense(), counts)
    np.testing.assert_array_equal(dense_counts(sparse, torch.device("cpu")).numpy(), counts)
    empty = BatchCounts.of_dense(np.zeros_like(counts))
    assert empty.start.tolist() == [0] * (B * G + 1)
    assert not empty.dense().any()


def nb_by_scipy(output, counts, mask, size, scale):
    """``log Poisson(K; K) - log NB(K; Λ, θ)`` a bin, from scipy's two distributions."""
    m = mask[:, None].double().numpy()
    rate, k = (pooled(x, scale) for x in (np.exp(output.double().numpy()) * m, counts.numpy() * m))
    holds = np.broadcast_to(pooled(m, scale) > 0, rate.shape)
    theta = np.broadcast_to(size.double().numpy()[:, None, None], rate.shape)[holds]
    rate, k = rate[holds], k[holds]
    return (poisson.logpmf(k, k) - nbinom.logpmf(k, theta, theta / (theta + rate))).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_negative_binomial_is_scipys(patch, dtype):
    output, counts, mask = patch
    objective = objective_of("nb")
    with torch.no_grad():
        objective.log_size.copy_(torch.linspace(-3, 3, 4 * G).reshape(4, G))
    losses = objective(output.to(dtype), BatchCounts.of_dense(counts.numpy()), mask)
    assert losses.dtype == dtype
    for loss, log_size, scale in zip(losses, objective.log_size, SCALES, strict=True):
        expected = nb_by_scipy(output, counts, mask, log_size.detach().exp(), scale)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert loss > 0


def test_negative_binomial_without_dispersion_is_half_the_poisson_deviance(patch):
    objective = objective_of("nb")
    with torch.no_grad():
        objective.log_size.fill_(14.0)
    losses = objective(patch[0], BatchCounts.of_dense(patch[1].numpy()), patch[2])
    torch.testing.assert_close(losses, Fused()(*patch), rtol=1e-4, atol=1e-6)


def test_negative_binomial_gradients_equal_finite_differences(patch):
    output, counts, mask = (x[1:, ..., :8, :8] for x in patch)
    objective = objective_of("nb", (2, 8)).double()
    sparse = BatchCounts.of_dense(counts.numpy())

    def losses(output, log_size):
        del objective.log_size
        objective.log_size = log_size
        return objective(output, sparse, mask)

    log_size = torch.linspace(-1, 2, 2 * G, dtype=torch.float64).reshape(2, G)
    inputs = output.double().requires_grad_(), log_size.requires_grad_()
    torch.autograd.gradcheck(losses, inputs, atol=1e-7)


def test_negative_binomial_finds_the_dispersion():
    """Counts drawn with θ = 0.7 around known rates: θ comes back at 2 µm, and is larger beyond."""
    rng = np.random.default_rng(5)
    rate = rng.uniform(0.2, 2, (2, 1, 64, 64))
    counts = rng.poisson(rate * rng.gamma(0.7, 1 / 0.7, rate.shape))
    objective = build_objective("nb", torch.tensor([0.5]), torch.ones(4, 1), SCALES)
    adam = torch.optim.Adam(objective.parameters(), lr=0.05)
    output, mask = torch.from_numpy(rate).log(), torch.ones(2, 64, 64, dtype=torch.bool)
    for _ in range(150):
        adam.zero_grad()
        objective(output, BatchCounts.of_dense(counts), mask).sum().backward()
        adam.step()
    size = objective.log_size.detach().exp().squeeze()
    assert size[0] == pytest.approx(0.7, rel=0.1)
    assert size[1] > 2 * size[0]  # independent bins: four of them are about four times θ
    assert size[2] > 2 * size[1]


def test_negative_binomial_begins_at_the_training_counts_dispersion():
    rate, std = torch.tensor([0.5, 0.1]), torch.tensor([[1.0, 0.1], [3.0, 1], [9, 2], [30, 5]])
    objective = build_objective("nb", rate, std, (2, 4))
    size = objective.log_size.detach().exp()
    assert size[0].tolist() == pytest.approx([0.5**2 / (1 - 0.5), 100], rel=1e-5)
    assert size[1].tolist() == pytest.approx([2**2 / (9 - 2), 0.4**2 / (1 - 0.4)], rel=1e-5)


@pytest.mark.parametrize("name", ["poisson", "nb", "mse"])
def test_outside_tissue_nothing_counts(patch, name):
    output, counts, mask = patch
    outside = (~mask[:, None]).float()
    output = output.requires_grad_()
    before = loss_of(name, output, counts, mask)
    after = loss_of(name, output + 3 * outside, counts + 50 * outside, mask)
    torch.testing.assert_close(after, before)
    before.sum().backward()
    assert output.grad[(~mask[:, None]).expand_as(output)].abs().max() == 0
    assert output.grad[mask[:, None].expand_as(output)].abs().min() > 0


@pytest.mark.parametrize("name", ["poisson", "nb", "mse"])
def test_patch_without_tissue_and_absurd_outputs_stay_finite(patch, name):
    output, counts, mask = patch
    assert loss_of(name, output, counts, torch.zeros_like(mask)).tolist() == [0.0] * 4
    for extreme in (-1e4, 1e4):
        x = torch.full_like(output, extreme).requires_grad_()
        value = loss_of(name, x, counts, mask)
        value.sum().backward()
        assert torch.isfinite(value).all()
        assert torch.isfinite(x.grad).all()


def test_initial_bias_stands_for_the_training_means():
    rate = torch.tensor([0.01, 0.2, 3.0])
    for name in ("poisson", "nb", "mse"):
        objective = build_objective(name, rate, torch.rand(4, 3) + 0.5, SCALES)
        output = objective.initial_bias[None, :, None, None].expand(1, 3, 16, 16)
        torch.testing.assert_close(objective.rate(output)[0, :, 5, 5], rate)
        torch.testing.assert_close(objective.train_rate, rate)


def test_mse_is_numpys_on_z_scores(patch):
    output, counts, mask = patch
    rng = np.random.default_rng(1)
    mean, std = rng.uniform(0.1, 1, G), rng.uniform(0.2, 2, (4, G))
    objective = build_objective("mse", torch.tensor(mean), torch.tensor(std), SCALES)
    losses = objective(output, BatchCounts.of_dense(counts.numpy()), mask)

    z = (counts.double().numpy() - mean[:, None, None]) / std[0][:, None, None]
    inside = np.broadcast_to(mask.numpy()[:, None], z.shape)
    expected = ((output.double().numpy() - z) ** 2)[inside].mean()
    assert losses[0].item() == pytest.approx(expected, rel=1e-5)

    m = mask[:, None].double().numpy()
    rate = mean[:, None, None] + std[0][:, None, None] * output.double().numpy()
    for i, scale in enumerate(SCALES):
        d = pooled((rate - counts.double().numpy()) * m, scale) / std[i][:, None, None]
        holds = np.broadcast_to(pooled(m, scale) > 0, d.shape)
        assert losses[i].item() == pytest.approx((d[holds] ** 2).mean(), rel=1e-5)


def test_pyramid_conserves_counts_exactly(patch):
    counts = patch[1].clone()
    counts[0, 0, 0, 0] = 65_536
    levels = pyramid(counts, SCALES)
    for level, scale in zip(levels, SCALES, strict=True):
        np.testing.assert_array_equal(level.numpy(), pooled(counts, scale))
        assert level.double().sum() == counts.double().sum()


def test_spread_is_the_adjoint_of_pyramid():
    rng = np.random.default_rng(0)
    for scales in (SCALES, (16,), (4, 16), (2,)):
        x = torch.from_numpy(rng.normal(size=(1, 2, 16, 16)))
        y = [torch.from_numpy(rng.normal(size=level.shape)) for level in pyramid(x, scales)]
        there = sum((a * b).sum() for a, b in zip(pyramid(x, scales), y, strict=True))
        torch.testing.assert_close((x * spread(y, scales)).sum(), there)


def test_unknown_names_and_scales():
    with pytest.raises(ValueError, match="expected poisson, nb or mse, got 'l1'"):
        build_objective("l1", torch.ones(1), torch.ones(4, 1), SCALES)
    for scales in ((), (3,), (2, 6)):
        with pytest.raises(ValueError, match="expected sides such as"):
            objective_of("poisson", scales)

import numpy as np
import pytest
import torch
from torch.nn.functional import poisson_nll_loss

from virchow_st.losses import build_objective
from virchow_st.losses.scales import pyramid, spread

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


def poisson_objective(scales=SCALES):
    return build_objective("poisson", torch.full((G,), 0.2), torch.ones(4, G), scales)


@pytest.mark.parametrize("scale", SCALES)
def test_poisson_is_torchs_up_to_the_saturated_likelihood(patch, scale):
    output, counts, mask = patch
    loss = poisson_objective((scale,))(output, counts, mask).item()
    m = mask[:, None].double().numpy()
    rate, count = (pooled(x, scale) for x in (np.exp(output.double().numpy()) * m, counts * m))
    holds = np.broadcast_to(pooled(m, scale) > 0, rate.shape)
    rate, count = torch.from_numpy(rate[holds]), torch.from_numpy(count[holds])
    nll = poisson_nll_loss(rate, count, log_input=False, eps=0.0)
    saturated = poisson_nll_loss(count, count, log_input=False, eps=1e-300)  # 0·log 0 = 0
    assert loss == pytest.approx(float(nll - saturated), rel=1e-5)


def test_all_scales_at_once_are_the_scales_one_by_one(patch):
    together = poisson_objective()(*patch)
    for i, scale in enumerate(SCALES):
        torch.testing.assert_close(together[i], poisson_objective((scale,))(*patch)[0])
    assert together.dtype == torch.float32
    shuffled = poisson_objective((16, 2, 8, 2, 4))
    assert shuffled.scales_um == SCALES
    torch.testing.assert_close(shuffled(*patch), together)


def test_poisson_is_zero_where_rates_are_the_counts_and_positive_elsewhere(patch):
    _, counts, mask = patch
    counts = counts + 1
    loss = poisson_objective()
    assert loss(counts.log(), counts, mask).abs().max() < 1e-5
    assert (loss(counts.log() + 0.1, counts, mask) > 1e-4).all()
    assert (loss(counts.log() - 0.1, counts, mask) > 1e-4).all()


def plain_poisson(output, counts, mask, scale):
    """The docstring's formula, written out for autograd in fp64."""
    m = mask[:, None].to(output.dtype)
    f = scale // 2

    def pool(x):
        return x.unfold(2, f, f).unfold(3, f, f).sum((-2, -1))

    rate, count, n = pool(output.exp() * m), pool(counts.to(output.dtype) * m), pool(m)
    holds = (n > 0).expand_as(rate)
    rate, count = rate[holds], count[holds]
    saturated = count * count.clamp(min=1).log()  # 0·log 0 = 0
    return (saturated - count * rate.log() - count + rate).mean()


@pytest.mark.parametrize("scales", [SCALES, (2,), (16,), (4, 16)])
def test_gradient_equals_autograd_of_the_plain_formula(patch, scales):
    output, counts, mask = patch
    weights = torch.linspace(0.5, 2, len(scales))
    output = output.requires_grad_()
    (poisson_objective(scales)(output, counts, mask) * weights).sum().backward()
    wide = output.detach().double().requires_grad_()
    total = sum(
        w * plain_poisson(wide, counts, mask, s)
        for w, s in zip(weights.double(), scales, strict=True)
    )
    total.backward()
    torch.testing.assert_close(output.grad.double(), wide.grad, rtol=1e-4, atol=1e-9)


def test_gradient_equals_finite_differences(patch):
    output, counts, mask = (x[1:, ..., :8, :8] for x in patch)
    output = output[:, :2].double().requires_grad_()
    torch.autograd.gradcheck(
        poisson_objective((2, 8)), (output, counts[:, :2].double(), mask), atol=1e-7
    )


@pytest.mark.parametrize("name", ["poisson", "mse"])
def test_outside_tissue_nothing_counts(patch, name):
    output, counts, mask = patch
    loss = build_objective(name, torch.full((G,), 0.2), torch.ones(4, G), SCALES)
    outside = (~mask[:, None]).float()
    output = output.requires_grad_()
    before = loss(output, counts, mask)
    torch.testing.assert_close(loss(output + 3 * outside, counts + 50 * outside, mask), before)
    before.sum().backward()
    assert output.grad[(~mask[:, None]).expand_as(output)].abs().max() == 0
    assert output.grad[mask[:, None].expand_as(output)].abs().min() > 0


@pytest.mark.parametrize("name", ["poisson", "mse"])
def test_patch_without_tissue_and_absurd_outputs_stay_finite(patch, name):
    output, counts, mask = patch
    loss = build_objective(name, torch.full((G,), 0.2), torch.ones(4, G), SCALES)
    assert loss(output, counts, torch.zeros_like(mask)).tolist() == [0.0] * 4
    for extreme in (-1e4, 1e4):
        x = torch.full_like(output, extreme).requires_grad_()
        value = loss(x, counts, mask)
        value.sum().backward()
        assert torch.isfinite(value).all()
        assert torch.isfinite(x.grad).all()


def test_initial_bias_stands_for_the_training_means():
    rate = torch.tensor([0.01, 0.2, 3.0])
    for name in ("poisson", "mse"):
        objective = build_objective(name, rate, torch.rand(4, 3) + 0.5, SCALES)
        output = objective.initial_bias[None, :, None, None].expand(1, 3, 16, 16)
        torch.testing.assert_close(objective.rate(output)[0, :, 5, 5], rate)
        torch.testing.assert_close(objective.train_rate, rate)


def test_mse_is_numpys_on_z_scores(patch):
    output, counts, mask = patch
    rng = np.random.default_rng(1)
    mean, std = rng.uniform(0.1, 1, G), rng.uniform(0.2, 2, (4, G))
    objective = build_objective("mse", torch.tensor(mean), torch.tensor(std), SCALES)
    losses = objective(output, counts, mask)

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
    with pytest.raises(ValueError, match="expected poisson or mse, got 'nb'"):
        build_objective("nb", torch.ones(1), torch.ones(4, 1), SCALES)
    for scales in ((), (3,), (2, 6)):
        with pytest.raises(ValueError, match="expected sides such as"):
            poisson_objective(scales)

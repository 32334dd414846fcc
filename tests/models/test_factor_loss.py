"""The deviance of a rate field of factors, by the numba kernels and by torch on sparse counts."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from virchow_st.kernels.factor_loss_cases import draw_factor_batch
from virchow_st.kernels.factors import MIN_RATE
from virchow_st.models.losses import factors, factors_gpu
from virchow_st.models.losses.base import on_device
from virchow_st.models.losses.factors import factor_half_deviance, implementation_on
from virchow_st.models.losses.factors_cpu import FusedFactors
from virchow_st.models.losses.factors_gpu import ScatteredFactors
from virchow_st.models.losses.poisson import half_deviance
from virchow_st.models.losses.scales import tissue_bins
from virchow_st.models.losses.targets import BatchCounts
from virchow_st.types import SCALES_UM

B, G, K, SIDE = 2, 50, 6, 32
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for a busy core slow down work as small as this many times over."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["fused", "scattered"])
def way(request, monkeypatch) -> str:
    """Both implementations, on the CPU; the second gathers a few counts at a time."""
    if request.param == "scattered":
        monkeypatch.setattr(factors_gpu, "_CHUNK", 1000)
        monkeypatch.setattr(factors, "implementation_on", lambda device: ScatteredFactors)
    return request.param


class Drawn:
    """Log factors that are not those of the counts, loadings, counts and a mask with holes."""

    def __init__(self, seed=0, n_patches=B, n_genes=G, n_factors=K, side=SIDE, dtype=torch.float64):
        rng = np.random.default_rng(seed)
        batch = draw_factor_batch(rng, n_patches, n_genes, n_factors, side=side)
        away = batch.log_factors + rng.normal(0, 0.5, batch.log_factors.shape)
        self.log_factors = torch.from_numpy(away).to(dtype).requires_grad_()
        self.loadings = torch.from_numpy(batch.loadings).to(dtype).requires_grad_()
        self.counts = BatchCounts(
            batch.start, batch.position, batch.count, (n_patches, n_genes, side, side)
        )
        mask = batch.mask & (rng.random(batch.mask.shape) < 0.9)
        mask[0, : side // 2 + 3, : side // 2 + 5] = False  # leaves whole 16 µm bins empty
        self.mask = torch.from_numpy(mask)

    def n_bins(self, scales=SCALES_UM):
        return tissue_bins(self.mask, scales) * self.counts.shape[1]

    def loss(self, scales=SCALES_UM, measured=None):
        inputs = self.log_factors, self.loadings, self.counts, self.mask
        return factor_half_deviance(*inputs, self.n_bins(scales), scales, measured)

    def gradients(self, losses, weights):
        inputs = self.log_factors, self.loadings
        return torch.autograd.grad(losses, inputs, weights, retain_graph=True)


def plain(drawn: Drawn, scales=SCALES_UM, measured=None):
    """The definition: dense rates, sums as means times the area, and autograd."""
    tissue = drawn.mask[:, None].double()
    counts = torch.from_numpy(drawn.counts.dense()).double() * tissue
    h = drawn.log_factors.double().exp() * tissue
    rate = torch.einsum("gk,bkrc->bgrc", drawn.loadings.double(), h)
    losses = []
    for scale, n in zip(scales, drawn.n_bins(scales), strict=True):
        sides = scale // 2
        k, r = (avg_pool2d(x, sides) * sides**2 for x in (counts, rate))
        tiny = torch.finfo(torch.float64).tiny  # without tissue 0·log(0/0) is meant to be 0
        terms = torch.xlogy(k, k.clamp(min=tiny) / r.clamp(min=tiny)) - k + r
        if measured is not None:
            terms = terms * measured[:, :, None, None]
        losses.append(terms.sum() / n)
    return torch.stack(losses)


def close(got, want, relative):
    """Differences are small compared with the largest value."""
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        assert (g.double() - w.double()).abs().max() <= relative * w.abs().max()


@pytest.mark.parametrize("scales", [SCALES_UM, (2,), (16,), (4, 16)])
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_loss_is_that_of_dense_rates(way, scales, dtype, relative):
    drawn = Drawn(dtype=dtype)
    losses = drawn.loss(scales)
    assert losses.dtype == dtype
    torch.testing.assert_close(losses.double(), plain(drawn, scales), rtol=relative, atol=0)
    tissue = drawn.mask[:, None].double()
    wide = drawn.log_factors.double().exp()
    log_rate = torch.einsum("gk,bkrc->bgrc", drawn.loadings.double(), wide).log()
    counts = torch.from_numpy(drawn.counts.dense()).double()
    dense = half_deviance(log_rate, counts, tissue, drawn.n_bins(scales), scales)
    torch.testing.assert_close(losses.double(), dense, rtol=relative, atol=0)


@pytest.mark.parametrize("scales", [SCALES_UM, (2,), (16,), (4, 16)])
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_gradients_are_those_of_dense_rates(way, scales, dtype, relative):
    drawn = Drawn(dtype=dtype)
    weights = torch.linspace(0.5, 2, len(scales), dtype=dtype)
    got = drawn.gradients(drawn.loss(scales), weights)
    want = drawn.gradients(plain(drawn, scales), weights.double())
    assert [g.dtype for g in got] == [dtype, dtype]
    close(got, want, relative)


@pytest.mark.parametrize("scales", [(2,), (2, 8), (4, 16)])
def test_gradients_equal_finite_differences(way, scales):
    drawn = Drawn(n_patches=1, n_genes=5, n_factors=2, side=8)
    scales = tuple(scale for scale in scales if scale <= 16)

    def loss(log_factors, loadings):
        return factor_half_deviance(
            log_factors, loadings, drawn.counts, drawn.mask, drawn.n_bins(scales), scales
        )

    assert drawn.counts.count.sum() > 100
    torch.autograd.gradcheck(loss, (drawn.log_factors, drawn.loadings), atol=1e-7)


def test_each_scales_gradient_can_be_asked_for_before_the_whole(way):
    """As GradNorm does, for a weight that only one of the two inputs depends on."""
    drawn = Drawn()
    losses, wanted = drawn.loss(), plain(drawn)
    for i in range(len(SCALES_UM)):
        (got,) = torch.autograd.grad(losses[i], drawn.log_factors, retain_graph=True)
        (want,) = torch.autograd.grad(wanted[i], drawn.log_factors, retain_graph=True)
        close([got], [want], 1e-12)
        (got,) = torch.autograd.grad(losses[i], drawn.loadings, retain_graph=True)
        (want,) = torch.autograd.grad(wanted[i], drawn.loadings, retain_graph=True)
        close([got], [want], 1e-12)
    ones = torch.ones(len(SCALES_UM), dtype=torch.float64)
    close(drawn.gradients(losses, ones), drawn.gradients(wanted, ones), 1e-12)
    assert all((g == 0).all() for g in drawn.gradients(losses, 0 * ones))


def test_nothing_outside_tissue_is_used(way):
    drawn, other = Drawn(), Drawn()
    outside = ~drawn.mask[:, None]
    other.log_factors = torch.where(outside, 5.0, drawn.log_factors.detach()).requires_grad_()
    dense = drawn.counts.dense()
    assert dense[np.broadcast_to(outside.numpy(), dense.shape)].sum() > 100
    other.counts = BatchCounts.of_dense(np.where(outside.numpy(), 0, dense))
    losses, others = drawn.loss(), other.loss()
    torch.testing.assert_close(losses, others, rtol=1e-13, atol=0)
    weights = torch.ones(4, dtype=torch.float64)
    gradients = drawn.gradients(losses, weights)
    close(gradients, other.gradients(others, weights), 1e-12)
    assert (gradients[0][outside.expand_as(gradients[0])] == 0).all()


def test_genes_that_were_not_measured_contribute_nothing(way):
    drawn = Drawn()
    measured = torch.from_numpy(np.random.default_rng(1).random((B, G)) < 0.7)
    measured[:, 3] = False
    assert np.diff(drawn.counts.start)[~measured.numpy().ravel()].sum() > 100
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
    losses, wanted = drawn.loss(measured=measured), plain(drawn, measured=measured)
    torch.testing.assert_close(losses, wanted, rtol=1e-12, atol=0)
    gradients = drawn.gradients(losses, weights)
    close(gradients, drawn.gradients(wanted, weights), 1e-12)
    assert (gradients[1][3] == 0).all()


def test_patches_without_tissue_and_batches_without_counts(way):
    drawn = Drawn()
    drawn.mask[1] = False
    weights = torch.ones(4, dtype=torch.float64)
    close([drawn.loss()], [plain(drawn)], 1e-12)
    gradients = drawn.gradients(drawn.loss(), weights)
    close(gradients, drawn.gradients(plain(drawn), weights), 1e-12)
    assert (gradients[0][1] == 0).all()
    drawn.mask[:] = False
    assert (drawn.loss() == 0).all()
    assert all((g == 0).all() for g in drawn.gradients(drawn.loss(), weights))

    drawn = Drawn()
    drawn.counts = BatchCounts.of_dense(np.zeros(drawn.counts.shape, np.uint16))
    close([drawn.loss()], [plain(drawn)], 1e-12)
    close(drawn.gradients(drawn.loss(), weights), drawn.gradients(plain(drawn), weights), 1e-12)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_loadings_of_zero(way, dtype, relative):
    """A factor that a gene lacks changes nothing; counts of a gene without any stay finite."""
    drawn = Drawn(dtype=dtype)
    with torch.no_grad():
        drawn.loadings[:10, 0] = 0
    weights = torch.ones(4, dtype=dtype)
    losses, wanted = drawn.loss(), plain(drawn)
    torch.testing.assert_close(losses.double(), wanted, rtol=relative, atol=0)
    close(drawn.gradients(losses, weights), drawn.gradients(wanted, weights.double()), relative)

    with torch.no_grad():
        drawn.loadings[7] = 0
    others = torch.ones(B, G, dtype=torch.bool)
    others[:, 7] = False
    counts = torch.from_numpy(drawn.counts.dense()[:, 7]).double() * drawn.mask
    own = []
    for scale, n in zip(SCALES_UM, drawn.n_bins(), strict=True):
        k = avg_pool2d(counts, scale // 2) * (scale // 2) ** 2
        own.append((torch.xlogy(k, k / MIN_RATE) - k).sum() / n)
    losses, rest = drawn.loss(), drawn.loss(measured=others)
    torch.testing.assert_close((losses - rest).double(), torch.stack(own), rtol=relative, atol=0)
    of_factors, of_loadings = drawn.gradients(losses, weights)
    assert torch.equal(of_factors, drawn.gradients(rest, weights)[0])
    assert of_loadings.norm().isfinite()
    assert (of_loadings[7] < 0).all()  # descent gives the gene loadings


def test_beyond_the_clamp_the_gradient_still_pulls_back(way):
    drawn = Drawn()
    at_clamp, beyond = Drawn(), Drawn()
    for other, value in ((at_clamp, 12.0), (beyond, 30.0)):
        with torch.no_grad():
            other.log_factors[1, 2] = value
    weights = torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(beyond.loss(), at_clamp.loss())
    got = beyond.gradients(beyond.loss(), weights)
    close(got, at_clamp.gradients(at_clamp.loss(), weights), 1e-12)
    assert (got[0][1, 2][drawn.mask[1]] > 0).all()


def test_not_a_number_is_not_hidden(way):
    drawn = Drawn(dtype=torch.float32)
    r, c = drawn.mask[1].nonzero()[0]
    with torch.no_grad():
        drawn.log_factors[1, 2, r, c] = torch.nan
    assert drawn.loss().isnan().all()


def test_memory_layout_and_narrow_types(way):
    drawn = Drawn(dtype=torch.float32)
    weights = torch.ones(4)
    expected, gradients = drawn.loss(), drawn.gradients(drawn.loss(), weights)
    with torch.no_grad():
        drawn.log_factors = drawn.log_factors.to(memory_format=torch.channels_last)
        drawn.loadings = drawn.loadings.T.contiguous().T
    drawn.log_factors.requires_grad_()
    drawn.loadings.requires_grad_()
    assert torch.equal(drawn.loss(), expected)
    close(drawn.gradients(drawn.loss(), weights), gradients, 1e-6)
    drawn.log_factors = drawn.log_factors.detach().to(torch.bfloat16).requires_grad_()
    losses = drawn.loss()
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), plain(drawn), rtol=1e-6, atol=0)
    assert drawn.gradients(losses, weights)[0].dtype == torch.bfloat16


def test_threads_change_nothing_bit_for_bit():
    results = []
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        drawn = Drawn(dtype=torch.float32)
        losses = drawn.loss()
        results.append((losses.detach(), *drawn.gradients(losses, torch.tensor([1.0, 2, 3, 4]))))
    torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_the_device_chooses():
    assert implementation_on(torch.device("cpu")) is FusedFactors
    assert implementation_on(torch.device("cuda")) is ScatteredFactors


@pytest.mark.parametrize("device", DEVICES)
def test_both_ways_agree_wherever_the_counts_are(device):
    drawn = Drawn(dtype=torch.float32)
    maps = drawn.log_factors.detach(), drawn.loadings.detach()
    measured = torch.rand(B, G) < 0.7
    weights = torch.tensor([1.0, 2, 3, 4])
    fused = FusedFactors(*maps, drawn.counts, drawn.mask, SCALES_UM, measured)
    for counts in (drawn.counts, on_device(drawn.counts, torch.device(device))):
        there = [x.to(device) for x in (*maps, drawn.mask, measured, weights)]
        scattered = ScatteredFactors(*there[:2], counts, there[2], SCALES_UM, there[3])
        torch.testing.assert_close(fused.sums_S, scattered.sums_S.cpu(), rtol=1e-6, atol=0)
        for name in ("log_factor_gradient", "loading_gradient"):
            got = getattr(scattered, name)(there[4]).cpu()
            close([got], [getattr(fused, name)(weights)], 2e-5)


def test_counts_may_be_tensors():
    drawn = Drawn()
    losses = drawn.loss()
    drawn.counts = on_device(drawn.counts, torch.device("cpu"))
    assert torch.equal(drawn.loss(), losses)


def test_only_the_gradient_that_is_asked_for_is_computed(way, monkeypatch):
    """GradNorm asks for each scale's gradient of the factors alone."""
    drawn = Drawn()
    kind = FusedFactors if way == "fused" else ScatteredFactors

    def refuse(*args):
        raise AssertionError("the gradient of the loadings was computed")

    monkeypatch.setattr(kind, "loading_gradient", refuse)
    drawn.loss()[2].backward(inputs=[drawn.log_factors])
    assert drawn.log_factors.grad.abs().max() > 0
    with pytest.raises(AssertionError, match="loadings was computed"):
        drawn.loss().sum().backward()


def test_either_input_may_be_fixed(way):
    drawn = Drawn()
    weights = torch.ones(4, dtype=torch.float64)
    wanted = drawn.gradients(drawn.loss(), weights)
    for fixed, other in (("loadings", "log_factors"), ("log_factors", "loadings")):
        drawn = Drawn()
        setattr(drawn, fixed, getattr(drawn, fixed).detach())
        drawn.loss().sum().backward()
        close([getattr(drawn, other).grad], [wanted[other == "loadings"]], 1e-12)
    drawn.loadings.requires_grad_(False)
    assert not drawn.loss().requires_grad


def test_loadings_that_changed_before_the_gradient_are_refused(way):
    drawn = Drawn()
    losses = drawn.loss()
    with torch.no_grad():
        drawn.loadings *= 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


def test_the_whole_transcriptome_takes_bounded_memory():
    """18,000 genes of a patch, 9 UMIs per bin: 1.2 GB of dense float32 rates are never made."""
    n_genes, n_factors = 18_000, 64
    drawn = Drawn(n_patches=1, n_genes=n_genes, n_factors=n_factors, side=128, dtype=torch.float32)
    assert drawn.counts.count.sum() > 100_000
    Drawn(dtype=torch.float32).loss().sum().backward()  # compiles
    tracemalloc.start()  # NumPy reports its arrays, among them the gradients
    losses = drawn.loss()
    losses.sum().backward()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Twice the factors of all levels, and per non-zero and scale a quotient.
    maps, lists = 4 * n_factors * 128 * 128, len(drawn.counts.count)
    assert peak < 4 * maps + 20 * lists + 8 * 4 * n_genes + 2 * 4 * n_genes * n_factors
    assert (losses > 0).all()
    assert drawn.log_factors.grad.isfinite().all()
    assert drawn.loadings.grad.isfinite().all()


@pytest.mark.parametrize("name", ["counts", "loadings", "mask", "measured"])
def test_shapes_that_do_not_fit_are_named(name):
    drawn = Drawn()
    measured = torch.ones(B, G, dtype=torch.bool)
    if name == "counts":
        drawn.counts = BatchCounts.of_dense(np.zeros((B, G, SIDE, 2 * SIDE)))
    elif name == "loadings":
        drawn.loadings = drawn.loadings[:, :-1]
    elif name == "mask":
        drawn.mask = drawn.mask[:1]
    else:
        measured = measured[:, :-1]
    with pytest.raises(ValueError, match=f"{name}: expected shape"):
        drawn.loss(measured=measured)


def test_maps_that_hold_no_coarse_bin_are_refused():
    drawn = Drawn(side=8)
    inputs = drawn.log_factors, drawn.loadings, drawn.counts, drawn.mask
    with pytest.raises(ValueError, match="hold bins of 32 µm; got 8 × 8"):
        factor_half_deviance(*inputs, torch.ones(2), (2, 32))

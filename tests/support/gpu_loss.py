"""The Triton kernels of the Poisson loss against plain PyTorch in float64.

`test_fused_gpu.py` runs this file in a process of its own: with ``TRITON_INTERPRET=1``, which is
read when Triton is imported, on CPU tensors; and on the GPU, where there is one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from virchow_st.kernels import poisson_triton
from virchow_st.models.losses import build_objective, fused, fused_gpu, poisson
from virchow_st.models.losses.balance import gradient_norms
from virchow_st.models.losses.base import dense_counts
from virchow_st.models.losses.reference import plain_poisson, saturated_poisson
from virchow_st.models.losses.scales import tissue_bins
from virchow_st.models.losses.targets import BatchCounts

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
SCALES = (2, 4, 8, 16)
# The interpreter rounds as NumPy does; a GPU's exponential is off by a few units in the last place.
LOSS_RTOL, GRADIENT_RTOL = 1e-6 if INTERPRETED else 1e-5, 1e-4


def draw(
    B: int = 2, G: int = 2, side: int = 16, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, BatchCounts, Tensor]:
    """Log-rates, counts in random order, and a ragged mask that leaves whole 16 µm bins empty."""
    rng = np.random.default_rng(seed)
    output = torch.from_numpy(rng.normal(-1, 1, (B, G, side, side))).to(DEVICE, dtype)
    umis = rng.poisson(np.exp(rng.normal(-1.5, 1.5, output.shape)))
    mask = rng.random((B, side, side)) < 0.8
    mask[0, :9, :11] = False
    return output, shuffled(BatchCounts.of_dense(umis), rng), torch.from_numpy(mask).to(DEVICE)


def shuffled(counts: BatchCounts, rng: np.random.Generator) -> BatchCounts:
    """The same counts, in random order within each map."""
    order = np.concatenate(
        [a + rng.permutation(b - a) for a, b in zip(counts.start, counts.start[1:], strict=False)]
    ).astype(int)
    return BatchCounts(counts.start, counts.position[order], counts.count[order], counts.shape)


def triton_loss(
    output: Tensor, counts: BatchCounts, mask: Tensor, scales: tuple[int, ...] = SCALES
) -> Tensor:
    n_bins = fused_gpu.tissue_bins(mask, scales) * output.shape[1]
    return fused_gpu.fused_half_deviance(output, counts, mask, n_bins, scales)


def plain_loss(
    output: Tensor, counts: BatchCounts, mask: Tensor, scales: tuple[int, ...] = SCALES
) -> Tensor:
    """Plain PyTorch in float64, minus the loss of a perfect prediction."""
    dense = dense_counts(counts, output.device).double()
    least = saturated_poisson(dense, mask, scales)
    return plain_poisson(output.double(), dense, mask, scales) - least


def step(
    loss: Callable[..., Tensor],
    output: Tensor,
    counts: BatchCounts,
    mask: Tensor,
    scales: tuple[int, ...] = SCALES,
) -> tuple[Tensor, Tensor]:
    """Losses and the gradient of their weighted sum."""
    x = output.detach().requires_grad_()
    losses = loss(x, counts, mask, scales)
    weights = torch.linspace(0.5, 2, len(scales), device=DEVICE)
    (gradient,) = torch.autograd.grad((losses * weights).sum(), x)
    return losses.detach(), gradient


def check(
    output: Tensor, counts: BatchCounts, mask: Tensor, scales: tuple[int, ...] = SCALES
) -> None:
    losses, gradient = step(triton_loss, output, counts, mask, scales)
    plain, plain_gradient = step(plain_loss, output.double(), counts, mask, scales)
    assert losses.dtype == gradient.dtype == output.dtype
    rtols = (1e-10, 1e-10) if output.dtype == torch.float64 else (LOSS_RTOL, GRADIENT_RTOL)
    torch.testing.assert_close(losses.double(), plain, rtol=rtols[0], atol=1e-9)
    torch.testing.assert_close(gradient.double(), plain_gradient, rtol=rtols[1], atol=1e-8)


@pytest.mark.parametrize("scales", [SCALES, (2,), (16,), (4, 16), (2, 8), (4, 8, 64)])
def test_loss_and_gradient_are_plain_pytorchs(scales: tuple[int, ...]) -> None:
    check(*draw(G=1, side=64 if scales[-1] > 16 else 32), scales=scales)


def test_in_float64() -> None:
    check(*draw(dtype=torch.float64))


def test_on_a_whole_patch_of_one_gene() -> None:
    check(*draw(B=1, G=1, side=128))


def test_on_maps_smaller_than_a_strip() -> None:
    check(*draw(G=1, side=8), scales=(2, 4))


def test_gradient_equals_finite_differences() -> None:
    output, counts, mask = draw(B=1, G=1, side=16, dtype=torch.float64)
    torch.autograd.gradcheck(
        lambda x: triton_loss(x, counts, mask), output.requires_grad_(), atol=1e-7, fast_mode=True
    )


def test_without_counts_and_without_tissue() -> None:
    output, counts, mask = draw()
    empty = BatchCounts.of_dense(np.zeros(counts.shape, np.uint16))
    check(output, empty, mask)
    losses, gradient = step(triton_loss, output, counts, torch.zeros_like(mask))
    assert losses.tolist() == [0.0] * 4
    assert not gradient.any()


def test_some_maps_without_counts_and_some_with_counts_everywhere() -> None:
    output, _, mask = draw()
    umis = np.random.default_rng(1).poisson(2.0, output.shape) + 1
    umis[:, 1] = 0
    check(output, BatchCounts.of_dense(umis), mask)


def test_large_counts() -> None:
    output, counts, mask = draw()
    large = counts.count.copy()
    large[::50] = np.resize([65_536, 1_000_003, 255, 70_000], len(large[::50]))
    check(output, BatchCounts(counts.start, counts.position, large, counts.shape), mask)


def test_beyond_the_clamp_it_is_the_cpus() -> None:
    """The gradient stays that of the clamped rate; plain PyTorch does not clamp."""
    output, counts, mask = draw()
    output[:, :, ::3] = -1e4
    output[:, :, 1::3] = 1e4
    losses, gradient = step(triton_loss, output, counts, mask)
    x = output.cpu().requires_grad_()
    n_bins = tissue_bins(mask.cpu(), SCALES) * output.shape[1]
    expected = fused.fused_half_deviance(x, counts, mask.cpu(), n_bins, SCALES)
    (expected * torch.linspace(0.5, 2, 4)).sum().backward()
    torch.testing.assert_close(losses.cpu(), expected.detach(), rtol=LOSS_RTOL, atol=0)
    torch.testing.assert_close(gradient.cpu(), x.grad, rtol=GRADIENT_RTOL, atol=1e-9)


def test_zero_where_rates_are_the_counts_and_positive_elsewhere() -> None:
    _, counts, mask = draw()
    umis = dense_counts(counts, DEVICE) + 1
    counts = BatchCounts.of_dense(umis.cpu().numpy())
    assert triton_loss(umis.log(), counts, mask).abs().max() < 1e-5
    assert (triton_loss(umis.log() + 0.1, counts, mask) > 1e-4).all()
    assert (triton_loss(umis.log() - 0.1, counts, mask) > 1e-4).all()


def test_outside_tissue_nothing_counts() -> None:
    output, counts, mask = draw()
    outside = ~mask[:, None].expand_as(output)
    umis = dense_counts(counts, DEVICE)
    more = BatchCounts.of_dense((umis + 50 * outside).cpu().numpy())
    losses, gradient = step(triton_loss, output, counts, mask)
    others, other = step(triton_loss, output + 3 * outside, more, mask)
    assert torch.equal(losses, others)
    assert torch.equal(gradient, other)
    assert not gradient[outside].any()
    assert gradient[~outside].abs().min() > 0


def test_not_a_number_is_not_hidden() -> None:
    output, counts, mask = draw()
    mask[1, 7, 9] = True
    output[1, 1, 7, 9] = torch.nan
    with np.errstate(over="ignore", invalid="ignore"):  # of the interpreter
        losses, gradient = step(triton_loss, output, counts, mask)
    assert losses.isnan().all()
    assert gradient[1, 1, 7, 9].isnan()


def test_same_bits_every_time_and_in_any_order_of_counts() -> None:
    output, counts, mask = draw(G=1)
    lists = (counts.start, counts.position.view(np.int16), counts.count)
    on_device: list[Any] = [torch.from_numpy(x).to(DEVICE) for x in lists]
    there = BatchCounts(on_device[0], on_device[1], on_device[2], counts.shape)
    again = shuffled(counts, np.random.default_rng(9))
    first, *others = (step(triton_loss, output, c, mask) for c in (counts, counts, again, there))
    for losses, gradient in others:
        assert torch.equal(losses, first[0])
        assert torch.equal(gradient, first[1])


def test_each_scales_gradient_can_be_asked_for_before_the_whole() -> None:
    """GradNorm asks for the gradients in this order."""
    output, counts, mask = draw(G=1)
    output = output.requires_grad_()
    losses = triton_loss(output, counts, mask)
    parts = [torch.autograd.grad(loss, output, retain_graph=True)[0] for loss in losses]
    (whole,) = torch.autograd.grad(losses.sum(), output)
    torch.testing.assert_close(sum(parts), whole)
    for scale, part in zip(SCALES, parts, strict=True):
        alone = triton_loss(output, counts, mask, (scale,))
        (gradient,) = torch.autograd.grad(alone.sum(), output)
        torch.testing.assert_close(part, gradient)


def test_any_memory_layout() -> None:
    output, counts, mask = draw()
    expected = step(triton_loss, output, counts, mask)
    for laid in (output.to(memory_format=torch.channels_last), output.mT.contiguous().mT):
        losses, gradient = step(triton_loss, laid, counts, mask.mT.contiguous().mT)
        assert torch.equal(losses, expected[0])
        assert torch.equal(gradient, expected[1])


def test_the_objective_takes_it_and_a_balance_its_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`MultiScalePoisson` on a GPU: a decoder's bfloat16 output, GradNorm, one backward pass."""
    ways = fused_gpu.tissue_bins, fused_gpu.fused_half_deviance
    if not INTERPRETED:
        assert poisson.implementation_on(DEVICE) == ways
    monkeypatch.setattr(poisson, "implementation_on", lambda device: ways)
    output, counts, mask = draw()
    objective = build_objective("poisson", torch.full((2,), 0.2), torch.ones(4, 2), SCALES)
    objective, head = objective.to(DEVICE), torch.nn.Conv2d(2, 2, 1).to(DEVICE, torch.bfloat16)
    maps = head(output.to(torch.bfloat16))
    losses = objective(maps, counts, mask)
    assert losses.dtype == torch.float32
    expected = plain_loss(maps.detach(), counts, mask)
    torch.testing.assert_close(losses.detach().double(), expected, rtol=LOSS_RTOL, atol=1e-9)
    norms = gradient_norms(losses, head.weight)
    assert norms.shape == (4,)
    assert (norms > 0).all()
    losses.sum().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.isfinite().all()


def test_tissue_bins_are_torchs() -> None:
    mask = draw(B=3, side=32)[2]
    for m in (mask, torch.zeros_like(mask), torch.ones_like(mask)):
        for scales in (SCALES, (2,), (8, 64)):
            counted = fused_gpu.tissue_bins(m, scales)
            assert torch.equal(counted.long(), tissue_bins(m, scales))


def test_index_of_counts() -> None:
    """Bit masks, offsets and order equal NumPy's, for maps without counts and with many chunks."""
    umis = np.random.default_rng(3).poisson(0.8, (1, 3, 64, 64))
    umis[0, 1] = 0
    counts = shuffled(BatchCounts.of_dense(umis), np.random.default_rng(4))
    flat = umis.reshape(3, -1)
    lists = [torch.from_numpy(x).to(DEVICE) for x in (counts.start, counts.position, counts.count)]
    bits, before = torch.full((2, 3, 64 * 64 // 32), -1, dtype=torch.int32, device=DEVICE)
    umi, log_umi = torch.full((2, len(counts.count)), torch.nan, device=DEVICE)
    poisson_triton.index_counts[(3,)](
        *lists, bits, before, umi, log_umi, WORDS=128, CHUNK=256, enable_fp_fusion=True
    )
    has_counts = flat > 0
    words = np.packbits(has_counts, axis=1, bitorder="little").view("<i4")
    np.testing.assert_array_equal(bits.cpu(), words)
    n_set = has_counts.reshape(3, -1, 32).sum(2)
    np.testing.assert_array_equal(before.cpu(), n_set.cumsum(1) - n_set)
    np.testing.assert_array_equal(umi.cpu(), flat[has_counts])
    np.testing.assert_allclose(log_umi.cpu(), np.log(flat[has_counts]), rtol=1e-6, atol=1e-7)


def test_refuses_maps_that_it_cannot_cut() -> None:
    with pytest.raises(ValueError, match=r"powers of two.*got 48 × 32 bins"):
        fused_gpu.tissue_bins(torch.ones(1, 48, 32, dtype=torch.bool, device=DEVICE), SCALES)
    with pytest.raises(ValueError, match=r"bins of 32 µm; got 8 × 8 bins"):
        fused_gpu.tissue_bins(torch.ones(1, 8, 8, dtype=torch.bool, device=DEVICE), (2, 32))

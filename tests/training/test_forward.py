"""How the trainer calls its decoder, and the parts of a GPU's work that a CPU can check."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.models.decoders import build_decoder
from virchow_st.models.decoders.base import GeneHead
from virchow_st.models.decoders.parts import EdgeConv, TokenNorm
from virchow_st.models.decoders.stem import OpticalDensity
from virchow_st.models.decoders.variation import TokenDropout, variations
from virchow_st.runtime.devices import pick_device
from virchow_st.training.forward import _Compiled, worth_compiling
from virchow_st.training.validation import device_moments, pooled_moments

CPU = torch.device("cpu")


def test_head_stays_in_float32_under_autocast():
    head = GeneHead(8, torch.full((3,), -6.03))
    x = torch.randn(2, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        half = head(x.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, head(x.bfloat16().float()))
    assert torch.equal(half, head(x.bfloat16().float()))


def test_decoders_run_under_autocast():
    """As on a GPU: bfloat16 inside, float32 at the end, close to what float32 gives."""
    torch.manual_seed(0)
    tokens, image = torch.randn(1, 16, 16, 8), torch.rand(1, 3, 256, 256)
    for name in ("fusion", "hist2st", "guided", "img2st", "linear"):
        decoder = build_decoder(name, 16, torch.zeros(8), torch.ones(8), torch.zeros(2)).eval()
        with torch.no_grad():
            expected = decoder(tokens, image)
            with torch.autocast("cpu", torch.bfloat16):
                found = decoder(tokens, image)
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < 0.05 * expected.std() + 0.01, name


@pytest.mark.parametrize("scale_um", [2, 4, 8, 16])
def test_moments_on_a_device_are_those_of_the_kernels(scale_um):
    rng = np.random.default_rng(0)
    rate = rng.gamma(1.0, 0.3, (3, 128, 128)).astype(np.float32)
    counts = rng.poisson(0.2, (3, 128, 128)).astype(np.float32)
    mask = np.ones((128, 128), bool)
    mask[40:90, 17:55] = False
    rate[:, 50, 20] = np.nan  # outside tissue nothing is used
    found = device_moments(*map(torch.from_numpy, (rate, counts, mask)), scale_um)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, pooled_moments(rate, counts, mask, scale_um), rtol=1e-9)


@pytest.mark.parametrize("n_processes", [2, 3])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (OpticalDensity(), (5, 3, 8, 8)),
        (TokenNorm(torch.zeros(6), torch.ones(6)), (5, 4, 4, 6)),
        (TokenDropout(), (5, 4, 4, 6)),
    ],
)
def test_variation_is_drawn_for_the_batch_and_not_for_its_part(layer, shape, n_processes):
    layer.train()
    x = torch.rand(shape)
    torch.manual_seed(3)
    layer.part_of = None
    whole = layer(x)
    ends = [5 * i // n_processes for i in range(n_processes + 1)]
    for first, last in pairwise(ends):
        torch.manual_seed(3)
        layer.part_of = (first, 5)
        torch.testing.assert_close(layer(x[first:last]), whole[first:last])


# --- compiling ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compile", "device", "n_batches", "expected"),
    [("auto", "cuda", 10_000, True), ("auto", "cuda", 9_999, False), ("auto", "cpu", 10**6, False),
     ("always", "cpu", 1, True), ("never", "cuda", 10**6, False)],
)  # fmt: skip
def test_what_is_compiled(compile, device, n_batches, expected):
    config = TrainConfig(compile=compile)
    assert worth_compiling(config, torch.device(device), n_batches) == expected


def test_edges_are_repeated_alike_when_compiled(monkeypatch):
    torch.manual_seed(0)
    for side, groups in ((3, 1), (5, 6)):
        conv = EdgeConv(6, 6, side, groups)
        x = torch.randn(2, 6, 9, 7, requires_grad=True)
        results = []
        for compiling in (False, True):
            monkeypatch.setattr(
                torch.compiler, "is_compiling", lambda compiling=compiling: compiling
            )
            y = conv(x)
            results.append((y, *torch.autograd.grad(y.square().sum(), [x, conv.weight])))
        for plain, fused in zip(*results, strict=True):
            torch.testing.assert_close(plain, fused)


def test_a_decoder_that_cannot_be_compiled_is_said_in_a_line():
    def features(tokens, image):
        raise torch._dynamo.exc.BackendCompilerFailed(len, RuntimeError("no g++\nat all"), None)

    decoder = build_decoder("linear", 16, torch.zeros(8), torch.ones(8), torch.zeros(2))
    with pytest.raises(ConfigError, match="torch could not compile the decoder .*--compile never"):
        _Compiled(decoder, features)(torch.zeros(1, 16, 16, 8))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "hist2st", "img2st", "guided", "fusion"])
def test_compiled_is_the_same(name):
    """Outputs, all gradients, and those GradNorm asks for, at the head alone."""
    torch.manual_seed(0)
    decoder = build_decoder(name, 16, torch.zeros(8), torch.ones(8), torch.full((3,), -3.0))
    if name in ("guided", "fusion"):
        decoder.eval()  # compiled, it withholds the tokens of other patches
    for variation in variations(decoder):
        variation.amount = 0.0  # and varies otherwise
    tokens, image = torch.randn(2, 16, 16, 8), torch.rand(2, 3, 256, 256)
    found = []
    for called in (decoder, _Compiled(decoder, torch.compile(decoder.features, dynamic=False))):
        decoder.zero_grad()
        output = called(tokens, image)
        losses = output.exp().mean(), output.square().mean()
        weight = decoder.head.weight
        norms = [torch.autograd.grad(loss, weight, retain_graph=True)[0].norm() for loss in losses]
        sum(losses).backward()
        gradients = [p.grad.clone() for p in decoder.parameters()]
        found.append((output.detach(), torch.stack(norms), *gradients))
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)


# --- devices ------------------------------------------------------------------------------------


def test_each_process_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("auto", "cuda"):
        assert pick_device(name, process=1) == torch.device("cuda:1")
    assert pick_device("cpu", process=1) == CPU
    with pytest.raises(ConfigError, match="this machine has 2 and runs 3 processes or more"):
        pick_device("auto", process=2)
    with pytest.raises(ConfigError, match="expected auto, cpu or cuda with several processes"):
        pick_device("cuda:1", process=0)

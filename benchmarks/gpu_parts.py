"""The parts of `gpu.py`: each checks what a GPU computes, then measures it.

Every part takes the device and whether sizes are tiny, and returns tables; it raises where results
are wrong. Its working directory is an empty folder.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from virchow_st.bench.limits import matmul_rate
from virchow_st.bench.tables import Cell, Table, interleaved
from virchow_st.types import SCALES_UM

_TESTS = Path(__file__).resolve().parents[1] / "tests" / "models"
_ENCODER_ERROR = 0.03  # of bfloat16 tokens beside float32 ones, ‖difference‖ / ‖float32‖
RATE_ERROR = 0.01  # of predicted rates on the GPU beside those on the CPU


GPU_TESTS = (
    "test_fused_gpu.py::test_kernels_equal_the_reference[gpu]",
    "test_factor_loss.py::test_both_ways_agree_wherever_the_counts_are[cuda]",
    "test_vit.py::test_bfloat16_stays_close_to_float32",
)
"""What the tests compute on a GPU where there is one."""
TINY_TESTS = ("test_factor_loss.py::test_both_ways_agree_wherever_the_counts_are[cpu]",)


class LeftOutError(Exception):
    """Raised by a part that cannot run for want of a package beside those of the wheel."""


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖; NaN if a value is not finite."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).norm() / expected.norm())


def check_error(what: str, found: float, largest: float) -> None:
    if not found <= largest:  # NaN does not pass
        raise AssertionError(f"{what}: expected a relative error up to {largest}; got {found:.3g}")


# --- tests --------------------------------------------------------------------------------------


def tests(device: torch.device, tiny: bool) -> list[Table]:
    """The tests that use a GPU where there is one; with ``tiny`` one of them on the CPU."""
    if find_spec("pytest") is None:
        raise LeftOutError("pytest is not installed")
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         *(TINY_TESTS if tiny else GPU_TESTS)],
        cwd=_TESTS, capture_output=True, text=True,
    )  # fmt: skip
    passed = re.search(r"(\d+) passed", done.stdout)
    if done.returncode or passed is None:
        raise AssertionError("\n".join(done.stdout.splitlines()[-20:]))
    seconds = time.perf_counter() - started
    return [Table("Tests", ["", "passed", "s"], [["all", int(passed[1]), seconds]])]


# --- losses -------------------------------------------------------------------------------------


def loss(device: torch.device, tiny: bool) -> list[Table]:
    """The Triton kernels of the Poisson loss: compared with plain PyTorch, then timed."""
    from virchow_st.bench.loss import measure
    from virchow_st.models.losses.fused_gpu import missing

    if device.type == "cuda" and missing():
        raise AssertionError(f"the fused loss cannot run on this GPU: {missing()}")
    sizes = ((1, 3),) if tiny else ((8, 50), (64, 50), (1, 2000))
    return measure(device=str(device), sizes=sizes, rounds=1 if tiny else 8)


def factors(device: torch.device, tiny: bool) -> list[Table]:
    """The loss of factors: against dense rates in float64, then timed up to 18,000 genes."""
    check_factors(device)
    n_patches, n_factors = (1, 4) if tiny else (4, 32)
    rows: list[list[Cell]] = []
    for n_genes in (50, 2000) if tiny else (50, 2_000, 18_000):
        batch = FactorBatch(n_patches, n_genes, n_factors, device=device)
        (seconds,) = interleaved(lambda: batch.step(wait_for=device), rounds=1 if tiny else 10)  # noqa: B023
        rows.append([f"{n_genes:,} genes", 1e3 * seconds, batch.n_counts, peak_mb(device, batch)])
    first = rows[0][1]
    assert isinstance(first, float)
    rows = [[*row[:2], float(str(row[1])) / first, *row[2:]] for row in rows]
    return [
        Table(
            f"Poisson loss of factors, forward and backward, B = {n_patches}, K = {n_factors}",
            ["", "ms", "ratio of time to 50 genes", "non-zeros", "GPU memory beyond inputs, MB"],
            rows,
            ["Losses and gradients equal those of dense rates in float64 (50 genes)."],
        )
    ]


class FactorBatch:
    """Log factors, loadings and counts on a device; the rates are not those of the counts."""

    def __init__(
        self, n_patches: int, n_genes: int, n_factors: int, side: int = 128, *, device: torch.device
    ) -> None:
        from virchow_st.kernels.factor_loss_cases import draw_factor_batch
        from virchow_st.models.losses.scales import tissue_bins
        from virchow_st.models.losses.targets import BatchCounts

        rng = np.random.default_rng(0)
        drawn = draw_factor_batch(rng, n_patches, n_genes, n_factors, side=side)
        away = drawn.log_factors + rng.normal(0, 0.3, drawn.log_factors.shape).astype(np.float32)
        self.log_factors = torch.from_numpy(away).to(device).requires_grad_()
        self.loadings = torch.from_numpy(drawn.loadings).to(device).requires_grad_()
        shape = n_patches, n_genes, side, side
        self.on_host = BatchCounts(drawn.start, drawn.position, drawn.count, shape)
        self.mask = torch.from_numpy(drawn.mask).to(device)
        self.n_bins = tissue_bins(self.mask, SCALES_UM) * n_genes
        self.n_counts = len(drawn.count)

    def step(self, wait_for: torch.device | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Losses (S,), and the gradients of their sum by log factors and loadings."""
        from virchow_st.models.losses.factors import factor_half_deviance

        losses = factor_half_deviance(
            self.log_factors, self.loadings, self.on_host, self.mask, self.n_bins, SCALES_UM
        )
        gradients = torch.autograd.grad(losses.sum(), [self.log_factors, self.loadings])
        if wait_for is not None:
            wait(wait_for)
        return losses.detach(), *gradients


def check_factors(device: torch.device) -> None:
    """Compare with dense rates, autograd, and means times the area, all in float64."""
    from virchow_st.models.losses.reference import plain_poisson, saturated_poisson

    batch = FactorBatch(2, 50, 6, 32, device=device)
    inputs = [x.detach().double().requires_grad_() for x in (batch.log_factors, batch.loadings)]
    rate = torch.einsum("gk,bkrc->bgrc", inputs[1], inputs[0].exp())
    counts = torch.from_numpy(batch.on_host.dense()).to(device).double()
    least = saturated_poisson(counts, batch.mask, SCALES_UM)
    expected = plain_poisson(rate.log(), counts, batch.mask, SCALES_UM) - least
    gradients = torch.autograd.grad(expected.sum(), inputs)
    found = batch.step()
    names = ("losses", "gradient of log factors", "gradient of loadings")
    for name, x, y in zip(names, found, (expected.detach(), *gradients), strict=True):
        check_error(f"loss of factors, {name}", error(x, y), 1e-4)


def peak_mb(device: torch.device, batch: FactorBatch) -> float | None:
    """Peak memory of a step in addition to its inputs, MB; None on the CPU."""
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    batch.step(wait_for=device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


# --- encoder ------------------------------------------------------------------------------------


def encoder(device: torch.device, tiny: bool) -> list[Table]:
    """Virchow2's architecture with random weights: beside float32, and its rate as it is."""
    return [_encoder(device, tiny, compiled=False)]


def encoder_compiled(device: torch.device, tiny: bool) -> list[Table]:
    """The same, compiled by torch."""
    return [_encoder(device, tiny, compiled=True)]


def _encoder(device: torch.device, tiny: bool, compiled: bool) -> Table:
    from virchow_st.bench.encoder import flops_of, open_encoder
    from virchow_st.models.encoders import published
    from virchow_st.models.encoders.vit import ViTEncoder

    if tiny:
        small = {**published.VIRCHOW2.arguments, "embed_dim": 32, "depth": 1, "num_heads": 2}
        published.VIRCHOW2 = replace(published.VIRCHOW2, arguments=small)
    rng = np.random.default_rng(0)

    def opened(precision: torch.dtype | None = None) -> ViTEncoder:
        made = open_encoder("virchow2", "", True, str(device), precision)
        assert isinstance(made, ViTEncoder)
        for name, parameter in made.model.named_parameters():
            if name.endswith("gamma"):  # else random blocks add 1e-5 of nothing, wrong or right
                parameter.data.fill_(0.3)
        return made

    few = rng.integers(0, 256, (2, 224, 224, 3), np.uint8)
    exact = torch.from_numpy(opened(torch.float32).encode(few).tokens)
    made = opened()
    n_flops = flops_of(made, few)
    if compiled:
        made.model.forward_features = torch.compile(made.model.forward_features, dynamic=False)
    found = error(torch.from_numpy(made.encode(few).tokens), exact)
    check_error("tokens beside float32", found, _ENCODER_ERROR)

    n_batches, batch = (1, 2) if tiny else (4, made.batch)
    images = rng.integers(0, 256, (batch, 224, 224, 3), np.uint8)

    def encode() -> None:  # as `vst extract` does: the next batch is queued while one is copied
        for waiting in [made.launch(images) for _ in range(n_batches)]:
            waiting()

    (seconds,) = interleaved(encode, rounds=1 if tiny else 5)
    rate = n_batches * batch / seconds
    peak = matmul_rate(device, rounds=1 if tiny else 5, precision=made.precision)
    what = "compiled" if compiled else "as it is"
    return Table(
        f"Encoder: Virchow2's architecture, random weights, {made.precision}, {what}",
        ["", "images/s", "TFLOP/s", "share of the matrix product"],
        [[f"batches of {batch}", rate, rate * n_flops / 1e12, rate * n_flops / peak],
         ["matrix product", None, peak / 1e12, 1.0]],
        [f"{n_flops / 1e9:.0f} GFLOP per image, counted by torch; copies to and from the host are "
         f"in the time. The tokens differ from float32 by {found:.1%} of their norm."],
    )  # fmt: skip

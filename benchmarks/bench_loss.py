"""The multi-scale Poisson loss: fused and sparse, against dense counts in torch.

Forward and backward of the loss alone, at 2, 4, 8 and 16 µm, from log-rates to their gradient, on
counts that are zero in 95 of 100 bins. Three ways:

- plain PyTorch (`virchow_st.losses.reference`): dense counts, `poisson_nll_loss`, `avg_pool2d`
  times the area, autograd. It leaves out the constant that makes a deviance of the likelihood, so
  it does a little less than the others;
- torch in closed form (`virchow_st.losses.poisson.half_deviance`): dense counts, a written-out
  gradient; what runs on a GPU;
- fused (`virchow_st.losses.fused`): lists of non-zeros, one sweep a map.

Dense counts lie ready for those that take them. "GradNorm" is a step as GradNorm needs it: forward,
each scale's gradient alone, and the gradient of the sum. All in turns in one process, the same
number of threads each; losses and gradients must agree.

Memory is measured in a process for each: the most memory it ever had resident (VmHWM, Linux) while
it computed, less what it had with the inputs ready.

    python benchmarks/bench_loss.py [--patches 8] [--rounds 10] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from report import Table, interleaved, publish
from torch import Tensor

from virchow_st.counts import BatchCounts
from virchow_st.kernels.table import draw_patch
from virchow_st.losses.poisson import MultiScalePoisson, half_deviance
from virchow_st.losses.reference import plain_poisson, saturated_poisson
from virchow_st.losses.scales import bins_with_tissue, pyramid
from virchow_st.types import SCALES_UM

PLAIN, CLOSED, FUSED = "plain PyTorch", "torch, closed form", "fused"
WAYS = (PLAIN, CLOSED, FUSED)
# Arrays of 64 kB and more go back to the system when freed. Else what a process once used counts as
# its own, and computing in it looks free.
_RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
Loss = Callable[[Tensor], Tensor]  # (B, G, 128, 128) log-rates to (S,)


@dataclass(frozen=True)
class Batch:
    """Log-rates, counts and tissue of B patches and G genes."""

    log_rate: Tensor
    counts: BatchCounts
    mask: Tensor

    def loss(self, way: str) -> Loss:
        """The loss in one of the `WAYS`, what it takes made ready."""
        n_genes = self.counts.shape[1]
        if way == FUSED:
            objective = MultiScalePoisson(torch.full((n_genes,), 0.05), SCALES_UM)
            return lambda x: objective(x, self.counts, self.mask)
        dense = torch.from_numpy(self.counts.dense())
        if way == PLAIN:
            return lambda x: plain_poisson(x, dense, self.mask, SCALES_UM)
        mask_B1RC = self.mask[:, None].float()

        def closed(x: Tensor) -> Tensor:
            n_tissue = pyramid(mask_B1RC, SCALES_UM)
            n_bins = torch.stack([bins_with_tissue(n) * n_genes for n in n_tissue])
            return half_deviance(x, dense, mask_B1RC, n_bins, SCALES_UM)

        return closed


def draw_batch(n_patches: int, n_genes: int) -> Batch:
    rng = np.random.default_rng(0)
    drawn = [draw_patch(rng, n_genes) for _ in range(n_patches)]
    rate, counts, mask = (np.stack(x) for x in zip(*drawn, strict=True))
    log_rate = torch.from_numpy(np.log(rate + 0.01))
    return Batch(log_rate, BatchCounts.of_dense(counts), torch.from_numpy(mask))


def step(log_rate: Tensor, loss: Loss, scale_by_scale: bool = False) -> tuple[Tensor, Tensor]:
    """Losses (S,) and the gradient of their sum."""
    x = log_rate.detach().requires_grad_()
    losses = loss(x)
    if scale_by_scale:
        for one in losses:
            torch.autograd.grad(one, x, retain_graph=True)
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    return losses.detach(), gradient


def check(batch: Batch) -> None:
    dense = torch.from_numpy(batch.counts.dense())
    least = saturated_poisson(dense, batch.mask, SCALES_UM)
    (plain, plain_gradient), *others = (step(batch.log_rate, batch.loss(way)) for way in WAYS)
    for losses, gradient in others:
        torch.testing.assert_close(losses, plain - least, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(gradient, plain_gradient, rtol=1e-3, atol=1e-9)


def times(batch: Batch, threads: int, rounds: int) -> Table:
    B, G = batch.counts.shape[:2]
    torch.set_num_threads(threads)
    losses = [batch.loss(way) for way in WAYS]
    calls = [lambda f=f, s=s: step(batch.log_rate, f, s) for s in (False, True) for f in losses]
    seconds = interleaved(*calls, rounds=rounds)
    alone, gradnorm = seconds[: len(WAYS)], seconds[len(WAYS) :]
    rows = [
        [way, 1e3 * a, alone[0] / a, 1e3 * g, gradnorm[0] / g]
        for way, a, g in zip(WAYS, alone, gradnorm, strict=True)
    ]
    return Table(
        f"B = {B}, G = {G}, {threads} thread{'s' * (threads > 1)}",
        ["forward + backward", "ms", "ratio", "GradNorm, ms", "ratio with GradNorm"],
        rows,
    )


def memory(n_patches: int, n_genes: int) -> Table:
    peaks = []
    for way in WAYS:
        own = [sys.executable, __file__, "--memory-of", way]
        sizes = ["--patches", str(n_patches), "--genes", str(n_genes)]
        done = subprocess.run(
            [*own, *sizes],
            env=os.environ | _RETURN_FREED,
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append([float(x) for x in done.stdout.split()])
    plain = sum(peaks[0])
    rows = [
        [way, counts, peak, counts + peak, (counts + peak) / plain]
        for way, (counts, peak) in zip(WAYS, peaks, strict=True)
    ]
    maps_mb = 4 * n_patches * n_genes * 128 * 128 / 1e6
    return Table(
        f"Memory beyond the log-rates, B = {n_patches}, G = {n_genes}",
        ["forward + backward", "counts, MB", "computing, MB", "both, MB", "share of plain PyTorch"],
        rows,
        [f"The gradient, which every way has to make, takes {maps_mb:.0f} MB."],
    )


def print_memory(way: str, n_patches: int, n_genes: int) -> None:
    """Megabytes of the counts and of one step beyond them; run in a process of its own."""
    torch.set_num_threads(1)
    small = draw_batch(1, 2)
    step(small.log_rate, small.loss(way))  # compiles, and loads what torch loads late
    batch = draw_batch(n_patches, n_genes)
    loss, counts = batch.loss(way), batch.counts
    lists = counts.start.nbytes + counts.position.nbytes + counts.count.nbytes
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    kept = step(batch.log_rate, loss)  # so that the gradient is there when the mark is read
    peak = resident("VmHWM") - before
    assert kept[1].shape == batch.log_rate.shape
    print((lists if way == FUSED else batch.log_rate.nbytes) / 1e6, peak / 1e6)


def resident(name: str) -> int:
    """Bytes, from the kernel's account of this process."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status: expected a line {name}; memory is measured on Linux only")


def main() -> None:
    parser = argparse.ArgumentParser(description="The multi-scale Poisson loss.")
    parser.add_argument("--patches", type=int, default=8, help="patches a batch of 50 genes")
    parser.add_argument("--genes", type=int, default=50, help="genes of the batch for memory")
    parser.add_argument("--rounds", type=int, default=10, help="timed turns; the best counts")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print_memory(options.memory_of, options.patches, options.genes)
        return
    tables = []
    for n_patches, n_genes in ((options.patches, 50), (1, 2000)):
        batch = draw_batch(n_patches, n_genes)
        check(batch)
        tables += [times(batch, threads, options.rounds) for threads in (1, 2)]
        tables.append(memory(n_patches, n_genes))
    publish("loss", tables, options.json)


if __name__ == "__main__":
    main()

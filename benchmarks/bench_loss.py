"""Times the multi-scale Poisson loss: fused on sparse counts, against dense counts in PyTorch.

What is timed is the loss alone at 2, 4, 8 and 16 µm, forward and backward, from log-rates to their
gradient, with counts of which 95 % are zero. There are three implementations:

- plain PyTorch (`virchow_st.models.losses.reference`): dense counts, `poisson_nll_loss`,
  `avg_pool2d` times the area, autograd. It leaves out the constant that turns the likelihood into
  the deviance, so it computes slightly less than the others;
- torch in closed form (`virchow_st.models.losses.poisson.half_deviance`): dense counts, with an
  explicit gradient;
- fused: lists of non-zeros; on a CPU one pass per map by numba
  (`virchow_st.models.losses.fused`), on a GPU Triton kernels
  (`virchow_st.models.losses.fused_gpu`).

Counts are prepared on the device, dense or as lists. "GradNorm" is a step of GradNorm: forward, the
gradient of each scale, and the gradient of the sum. All implementations run in alternation in one
process with the same number of threads; losses and gradients must agree. GOMP_SPINCOUNT is set as
by vst, because torch's threads would otherwise spin after their work and keep cores from the
kernels.

Memory on a CPU is measured in a separate process per implementation: the peak of resident memory
(VmHWM, Linux) while it computes, minus the resident memory with the inputs ready. On a GPU it is
the peak of torch's allocator, measured likewise.

    GOMP_SPINCOUNT=10000 python benchmarks/bench_loss.py [--device auto] [--patches 8] [--rounds 10]
        [--json FILE]
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

from virchow_st.kernels.table import draw_patch
from virchow_st.models.losses.fused_gpu import missing
from virchow_st.models.losses.poisson import MultiScalePoisson, half_deviance
from virchow_st.models.losses.reference import plain_poisson, saturated_poisson
from virchow_st.models.losses.scales import tissue_bins
from virchow_st.models.losses.targets import BatchCounts
from virchow_st.runtime.devices import pick_device
from virchow_st.types import SCALES_UM

PLAIN, CLOSED, FUSED = "plain PyTorch", "torch, closed form", "fused"
WAYS = (PLAIN, CLOSED, FUSED)
# Arrays of 64 kB and more are returned to the system when freed. Otherwise memory that a process
# has used before would be reused, and computing would seem to need none.
_RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
Loss = Callable[[Tensor], Tensor]  # (B, G, 128, 128) log-rates to (S,)


@dataclass(frozen=True)
class Batch:
    """Log-rates, tissue mask and counts of B patches and G genes, on the device."""

    log_rate: Tensor
    counts: BatchCounts
    mask: Tensor

    @property
    def device(self) -> torch.device:
        return self.log_rate.device

    def loss(self, way: str) -> Loss:
        """One of the implementations in `WAYS`, with its inputs prepared."""
        n_genes = self.counts.shape[1]
        if way == FUSED:
            train_rate = torch.full((n_genes,), 0.05)
            objective = MultiScalePoisson(train_rate, SCALES_UM).to(self.device)
            counts = self.counts
            if self.device.type == "cuda":
                lists = (counts.start, counts.position, counts.count)
                there = [torch.from_numpy(x).to(self.device) for x in lists]
                counts = BatchCounts(*there, counts.shape)
            return lambda x: objective(x, counts, self.mask)
        dense = self.dense()
        if way == PLAIN:
            return lambda x: plain_poisson(x, dense, self.mask, SCALES_UM)
        mask_B1RC = self.mask[:, None].float()

        def closed(x: Tensor) -> Tensor:
            n_bins = tissue_bins(self.mask, SCALES_UM) * n_genes
            return half_deviance(x, dense, mask_B1RC, n_bins, SCALES_UM)

        return closed

    def dense(self) -> Tensor:
        return torch.from_numpy(self.counts.dense()).to(self.device)

    def count_bytes(self, way: str) -> int:
        """Bytes of the counts in the form that an implementation needs."""
        if way != FUSED:
            return self.log_rate.nbytes
        return sum(x.nbytes for x in (self.counts.start, self.counts.position, self.counts.count))


def draw_batch(n_patches: int, n_genes: int, device: torch.device) -> Batch:
    rng = np.random.default_rng(0)
    drawn = [draw_patch(rng, n_genes) for _ in range(n_patches)]
    rate, counts, mask = (np.stack(x) for x in zip(*drawn, strict=True))
    log_rate = torch.from_numpy(np.log(rate + 0.01)).to(device)
    return Batch(log_rate, BatchCounts.of_dense(counts), torch.from_numpy(mask).to(device))


def step(log_rate: Tensor, loss: Loss, scale_by_scale: bool = False) -> tuple[Tensor, Tensor]:
    """Compute losses (S,) and the gradient of their sum; waits for the device."""
    x = log_rate.detach().requires_grad_()
    losses = loss(x)
    if scale_by_scale:
        for one in losses:
            torch.autograd.grad(one, x, retain_graph=True)
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return losses.detach(), gradient


def check(batch: Batch) -> None:
    least = saturated_poisson(batch.dense(), batch.mask, SCALES_UM)
    (plain, plain_gradient), *others = (step(batch.log_rate, batch.loss(way)) for way in WAYS)
    for losses, gradient in others:
        torch.testing.assert_close(losses, plain - least, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(gradient, plain_gradient, rtol=1e-3, atol=1e-9)


def times(batch: Batch, threads: int, rounds: int) -> Table:
    """Time all implementations; on a GPU the number of threads is 1 and does not matter."""
    B, G = batch.counts.shape[:2]
    torch.set_num_threads(threads)
    where = f"{threads} thread{'s' * (threads > 1)}"
    if batch.device.type == "cuda":
        where = torch.cuda.get_device_name(batch.device)
    losses = [batch.loss(way) for way in WAYS]
    calls = [lambda f=f, s=s: step(batch.log_rate, f, s) for s in (False, True) for f in losses]
    seconds = interleaved(*calls, rounds=rounds)
    alone, gradnorm = seconds[: len(WAYS)], seconds[len(WAYS) :]
    rows = [
        [way, 1e3 * a, alone[0] / a, 1e3 * g, gradnorm[0] / g]
        for way, a, g in zip(WAYS, alone, gradnorm, strict=True)
    ]
    return Table(
        f"B = {B}, G = {G}, {where}",
        ["forward + backward", "ms", "ratio", "GradNorm, ms", "ratio with GradNorm"],
        rows,
    )


def memory(batch: Batch) -> Table:
    on_gpu = batch.device.type == "cuda"
    peaks = [(peak_on_gpu if on_gpu else peak_in_process)(batch, way) for way in WAYS]
    counts = [batch.count_bytes(way) for way in WAYS]
    plain = counts[0] + peaks[0]
    rows = [
        [way, count / 1e6, peak / 1e6, (count + peak) / 1e6, (count + peak) / plain]
        for way, count, peak in zip(WAYS, counts, peaks, strict=True)
    ]
    B, G = batch.counts.shape[:2]
    return Table(
        f"Memory beyond the log-rates, B = {B}, G = {G}",
        ["forward + backward", "counts, MB", "computing, MB", "both, MB", "share of plain PyTorch"],
        rows,
        [f"The gradient, which all have to compute, takes {batch.log_rate.nbytes / 1e6:.0f} MB."],
    )


def peak_on_gpu(batch: Batch, way: str) -> int:
    """Peak memory of one step in addition to its inputs, bytes."""
    loss = batch.loss(way)
    step(batch.log_rate, loss)  # compiles, and allocates the libraries' workspaces before measuring
    before = torch.cuda.memory_allocated(batch.device)
    torch.cuda.reset_peak_memory_stats(batch.device)
    step(batch.log_rate, loss)
    return torch.cuda.max_memory_allocated(batch.device) - before


def peak_in_process(batch: Batch, way: str) -> int:
    """The same on a CPU, measured in a separate process."""
    own = [sys.executable, __file__, "--memory-of", way]
    B, G = batch.counts.shape[:2]
    done = subprocess.run(
        [*own, "--patches", str(B), "--genes", str(G)],
        env=os.environ | _RETURN_FREED,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def print_memory(way: str, n_patches: int, n_genes: int) -> None:
    """Print the memory of one step in addition to its inputs, bytes; runs in a separate process."""
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    small = draw_batch(1, 2, cpu)
    step(small.log_rate, small.loss(way))  # compiles, and imports what torch imports lazily
    batch = draw_batch(n_patches, n_genes, cpu)
    loss = batch.loss(way)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    kept = step(batch.log_rate, loss)  # keeps the gradient until the mark is read
    peak = resident("VmHWM") - before
    assert kept[1].shape == batch.log_rate.shape
    print(peak)


def resident(name: str) -> int:
    """Resident memory of this process as the kernel reports it, bytes."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status: expected a line {name}; memory is measured on Linux only")


def main() -> None:
    parser = argparse.ArgumentParser(description="The multi-scale Poisson loss.")
    parser.add_argument("--patches", type=int, default=8, help="patches per batch of 50 genes")
    parser.add_argument("--genes", type=int, default=50, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--rounds", type=int, default=10, help="timed runs; the best time is used")
    parser.add_argument("--json", type=Path, help="also write the tables to this file")
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print_memory(options.memory_of, options.patches, options.genes)
        return
    device = pick_device(options.device)
    on_gpu = device.type == "cuda"
    if on_gpu and missing():
        raise SystemExit(f"bench_loss: the fused loss cannot run on this GPU: {missing()}")
    tables = []
    for n_patches, n_genes in ((options.patches, 50), (1, 2000)):
        batch = draw_batch(n_patches, n_genes, device)
        check(batch)
        threads = (1,) if on_gpu else (1, 2)
        tables += [times(batch, n, options.rounds) for n in threads]
        tables.append(memory(batch))
    publish("loss", tables, options.json)


if __name__ == "__main__":
    main()

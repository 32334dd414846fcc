"""The Poisson loss of a rate field of factors against that of a map per gene.

Forward and backward of the loss alone, at 2, 4, 8 and 16 µm, on the same number of UMIs (9 per bin)
whatever the number of genes, drawn from the model itself. Three ways:

- factors (`virchow_st.models.losses.factors`): from log factors (K maps) and loadings to their
  gradients; rates are computed for non-zero counts only;
- maps, ready (`virchow_st.models.losses.fused`): from ready log-rates, a map per gene, to their
  gradient; what makes and takes these maps is left out;
- maps from factors: the same with log-rates made from the factors by torch, and the gradients
  carried back to factors and loadings.

Maps are left out where they take more than 1 GB, and 0.2 GB where they are made from factors, which
takes several arrays of that size. "GradNorm" is a step as GradNorm needs it:
forward, the gradient of each scale alone (of the factors, or of the maps), and all gradients of the
sum. All ways run in turns in one process, on one thread; losses and gradients must agree. The time
is that of the processor, which other programs disturb less.

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/bench_factors.py [--patches 4]
        [--factors 32] [--rounds 4] [--json FILE]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from report import Table, interleaved, publish
from torch import Tensor

from virchow_st.bench.tables import Cell
from virchow_st.kernels.factor_loss_cases import draw_factor_batch
from virchow_st.models.losses.factors import factor_half_deviance
from virchow_st.models.losses.fused import fused_half_deviance
from virchow_st.models.losses.scales import tissue_bins
from virchow_st.models.losses.targets import BatchCounts
from virchow_st.types import SCALES_UM

GENES = (50, 500, 2_000, 18_000)
FACTORS, READY, MADE = "factors", "maps, ready", "maps from factors"
_LARGEST = {FACTORS: math.inf, READY: 1e9, MADE: 2e8}  # bytes of all log-rates


@dataclass(frozen=True)
class Batch:
    """Log factors, loadings and counts of B patches; log-rates where they are not too large."""

    log_factors: Tensor
    loadings: Tensor
    counts: BatchCounts
    mask: Tensor
    n_bins: Tensor
    log_rate: Tensor | None

    def ways(self) -> list[str]:
        n_bytes = 4 * math.prod(self.counts.shape)
        return [way for way, largest in _LARGEST.items() if n_bytes <= largest]

    def inputs(self, way: str) -> list[Tensor]:
        """What a way takes gradients of; GradNorm takes those of the first."""
        if way == READY:
            assert self.log_rate is not None
            return [self.log_rate]
        return [self.log_factors, self.loadings]

    def loss(self, way: str) -> Tensor:
        rest = self.counts, self.mask, self.n_bins, SCALES_UM
        if way == FACTORS:
            return factor_half_deviance(self.log_factors, self.loadings, *rest)
        if way == READY:
            assert self.log_rate is not None
            return fused_half_deviance(self.log_rate, *rest)
        return fused_half_deviance(log_rates(self.log_factors, self.loadings), *rest)


def log_rates(log_factors: Tensor, loadings: Tensor) -> Tensor:
    B, K, R, C = log_factors.shape
    rate = loadings @ log_factors.exp().reshape(B, K, R * C)
    return rate.log().view(B, len(loadings), R, C)


def draw(n_patches: int, n_genes: int, n_factors: int) -> Batch:
    """The rates are not those of the counts, so that no gradient is about zero."""
    rng = np.random.default_rng(0)
    drawn = draw_factor_batch(rng, n_patches, n_genes, n_factors)
    away = drawn.log_factors + rng.normal(0, 0.3, drawn.log_factors.shape).astype(np.float32)
    log_factors, loadings = torch.from_numpy(away), torch.from_numpy(drawn.loadings)
    B, _, R, C = away.shape
    shape = B, n_genes, R, C
    mask = torch.from_numpy(drawn.mask)
    log_rate = None
    if 4 * math.prod(shape) <= _LARGEST[READY]:
        log_rate = log_rates(log_factors, loadings).requires_grad_()
    return Batch(
        log_factors=log_factors.requires_grad_(),
        loadings=loadings.requires_grad_(),
        counts=BatchCounts(drawn.start, drawn.position, drawn.count, shape),
        mask=mask,
        n_bins=tissue_bins(mask, SCALES_UM) * n_genes,
        log_rate=log_rate,
    )


def step(batch: Batch, way: str, scale_by_scale: bool = False) -> tuple[Tensor, ...]:
    """Compute losses (S,) and the gradients of their sum."""
    losses, inputs = batch.loss(way), batch.inputs(way)
    if scale_by_scale:
        for one in losses:
            torch.autograd.grad(one, inputs[0], retain_graph=True)
    return losses.detach(), *torch.autograd.grad(losses.sum(), inputs)


def check(batch: Batch) -> None:
    losses, *gradients = step(batch, FACTORS)
    for way in batch.ways()[1:]:
        others, *other_gradients = step(batch, way)
        torch.testing.assert_close(losses, others, rtol=1e-5, atol=0)
        if way == MADE:
            for ours, other in zip(gradients, other_gradients, strict=True):
                assert (ours - other).abs().max() <= 1e-4 * other.abs().max()


def times(batch: Batch, rounds: int) -> list[list[Cell]]:
    """Rows: genes and way, CPU ms per patch of a step, ratio to factors, the same with GradNorm."""
    B, G = batch.counts.shape[:2]
    ways = batch.ways()
    calls: list[Callable[[], object]] = [
        lambda w=w, s=s: step(batch, w, s) for s in (False, True) for w in ways
    ]
    seconds = interleaved(*calls, rounds=rounds, clock=time.process_time)
    alone, gradnorm = seconds[: len(ways)], seconds[len(ways) :]
    return [
        [f"{G:,} genes, {way}", 1e3 * a / B, a / alone[0], 1e3 * g / B, g / gradnorm[0]]
        for way, a, g in zip(ways, alone, gradnorm, strict=True)
    ]


def measure(n_patches: int, n_factors: int, rounds: int) -> Table:
    rows, sizes = [], []
    for n_genes in GENES:
        batch = draw(n_patches, n_genes, n_factors)
        check(batch)
        rows += times(batch, rounds)
        sizes.append(f"{len(batch.counts.count) / n_patches:,.0f} of {n_genes:,} genes")
    return Table(
        f"B = {n_patches}, K = {n_factors}, one thread",
        ["forward + backward", "CPU ms per patch", "ratio", "GradNorm, CPU ms per patch",
         "ratio with GradNorm"],
        rows,
        [f"Non-zeros per patch, 9 UMIs per bin: {', '.join(sizes)}. Ratios are to factors."],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="The Poisson loss of a rate field of factors.")
    parser.add_argument("--patches", type=int, default=4)
    parser.add_argument("--factors", default="32", help="numbers of factors, a table each")
    parser.add_argument("--rounds", type=int, default=4, help="timed turns; the best counts")
    parser.add_argument("--json", type=Path, help="also write the tables to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    numbers = [int(n) for n in options.factors.split(",")]
    tables = [measure(options.patches, n, options.rounds) for n in numbers]
    publish("factors", tables, options.json)


if __name__ == "__main__":
    main()

"""``vst bench loss``: multi-scale Poisson loss, forward and backward, against plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from virchow_st.bench.limits import copy_rate
from virchow_st.bench.tables import Cell, Table, interleaved
from virchow_st.kernels.table import draw_patch
from virchow_st.models.losses import build_objective
from virchow_st.models.losses.fused_gpu import missing
from virchow_st.models.losses.reference import plain_poisson, saturated_poisson
from virchow_st.models.losses.targets import BatchCounts
from virchow_st.runtime.devices import pick_device
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.types import PATCH_POSITIONS, SCALES_UM

_SIZES = ((8, 50), (1, 2000))  # patches and genes: a training step's, and a large panel's
_RTOL, _ATOL = 1e-3, 1e-7  # of float32 sums over a million bins, in another order
_COPY_BYTES = 256 << 20  # more than a GPU's cache holds

Loss = Callable[[Tensor], Tensor]  # (B, G, 128, 128) log-rates to (S,)


@dataclass(frozen=True)
class _Batch:
    """Drawn patches; log-rates and mask on the device, dense counts (UMIs) on the host."""

    log_rate: Tensor
    mask: Tensor
    dense: np.ndarray

    @property
    def device(self) -> torch.device:
        return self.log_rate.device

    def plain(self) -> Loss:
        """Plain PyTorch on dense counts that are ready on the device."""
        dense = torch.from_numpy(self.dense).to(self.device)
        return lambda x: plain_poisson(x, dense, self.mask, SCALES_UM)

    def ours(self) -> Loss:
        """Objective of training on sparse counts that are ready on the device."""
        counts = BatchCounts.of_dense(self.dense)
        if self.device.type == "cpu":
            return self._objective(counts)
        start, position, count = (
            cast(Any, torch.from_numpy(x).to(self.device))
            for x in (counts.start, counts.position, counts.count)
        )
        return self._objective(BatchCounts(start, position, count, counts.shape))

    def ours_from_host(self) -> Loss:
        """The same with the sparse counts copied to the device at every step."""
        return self._objective(BatchCounts.of_dense(self.dense))

    def _objective(self, counts: BatchCounts) -> Loss:
        train_rate = torch.from_numpy(self.dense.mean((0, 2, 3))).clamp(min=1e-4)
        train_std = torch.ones(len(SCALES_UM), len(train_rate))
        objective = build_objective("poisson", train_rate, train_std, SCALES_UM).to(self.device)
        return lambda x: objective(x, counts, self.mask)


def measure(
    progress: Progress = SILENT,
    *,
    device: str = "auto",
    sizes: tuple[tuple[int, int], ...] = _SIZES,
    rounds: int = 8,
) -> list[Table]:
    """Measure on drawn counts, 95 % of them zero, and log-rates close to the true ones.

    Args:
        progress: Receives notes, warnings and step counts.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        sizes: Numbers of patches and genes, one table each.
        rounds: Timed passes; the best time is used.

    Raises:
        AssertionError: Losses or gradients of two implementations differ.
    """
    place = pick_device(device)
    tables = []
    for n_patches, n_genes in sizes:
        progress.note(f"loss: {n_patches} patches, {n_genes} genes on {place}")
        tables.append(_measure_one(_draw(n_patches, n_genes, place), rounds))
    return tables


def _measure_one(batch: _Batch, rounds: int) -> Table:
    sides = {"plain PyTorch": batch.plain, "ours": batch.ours}
    on_gpu = batch.device.type == "cuda"
    if on_gpu:
        sides["ours, counts from the host"] = batch.ours_from_host
        peaks = [_extra_memory(batch, make) for make in sides.values()]
    losses = [make() for make in sides.values()]
    _check(batch, losses)
    seconds = interleaved(*(lambda f=f: _step(batch, f) for f in losses), rounds=rounds)

    # Lower bound of the work: read the log-rates and write their gradient.
    n_bytes = 2 * batch.log_rate.nbytes
    rate = _device_copy_rate(batch.device) if on_gpu else copy_rate(4 * PATCH_POSITIONS)
    columns = ["", "ms", "ratio to plain", "share of memcpy"]
    rows: list[list[Cell]] = [
        [name, 1e3 * s, seconds[0] / s, n_bytes / rate / s]
        for name, s in zip(sides, seconds, strict=True)
    ]
    if on_gpu:
        columns += ["extra memory, MB", "share of plain's memory"]
        rows = [[*row, peak / 1e6, peak / peaks[0]] for row, peak in zip(rows, peaks, strict=True)]
    B, G = batch.log_rate.shape[:2]
    n_counts = int(np.count_nonzero(batch.dense))
    notes = [
        f"{n_counts:,} non-zeros ({n_counts / batch.dense.size:.1%}), 2, 4, 8 and 16 µm, "
        f"{_machinery(batch.device)}; losses and gradients equal. Plain: dense counts, "
        "poisson_nll_loss, avg_pool2d times the area, autograd.",
        f"memcpy: {1e3 * n_bytes / rate:.2g} ms to move the log-rates and their gradient once, "
        f"{n_bytes / 1e6:.0f} MB, {'on the GPU' if on_gpu else 'one thread'}.",
    ]
    if on_gpu:
        notes.append("Extra memory: counts and all that a step makes, beyond log-rates and mask.")
    return Table(
        f"Multi-scale Poisson loss, forward and backward, B = {B}, G = {G}", columns, rows, notes
    )


def _draw(n_patches: int, n_genes: int, place: torch.device) -> _Batch:
    rng = np.random.default_rng(0)
    drawn = [draw_patch(rng, n_genes) for _ in range(n_patches)]
    rate, counts, mask = (np.stack(x) for x in zip(*drawn, strict=True))
    return _Batch(
        log_rate=torch.from_numpy(np.log(rate + 0.01)).to(place).requires_grad_(),
        mask=torch.from_numpy(mask).to(place),
        dense=counts.astype(np.float32),
    )


def _step(batch: _Batch, loss: Loss) -> tuple[Tensor, Tensor]:
    """Compute losses (S,) and the gradient of their sum; waits for the device."""
    losses = loss(batch.log_rate)
    (gradient,) = torch.autograd.grad(losses.sum(), batch.log_rate)
    if batch.device.type == "cuda":
        torch.cuda.synchronize(batch.device)
    return losses.detach(), gradient


def _check(batch: _Batch, losses: list[Loss]) -> None:
    dense = torch.from_numpy(batch.dense).to(batch.device)
    least = saturated_poisson(dense, batch.mask, SCALES_UM)
    (plain, plain_gradient), *others = (_step(batch, f) for f in losses)
    for ours, gradient in others:
        torch.testing.assert_close(ours, plain - least, rtol=_RTOL, atol=_ATOL)
        torch.testing.assert_close(gradient, plain_gradient, rtol=_RTOL, atol=_ATOL)


def _machinery(device: torch.device) -> str:
    """Name of the implementation that the package uses on a device."""
    if device.type == "cpu":
        return f"ours by numba kernels, {torch.get_num_threads()} threads"
    return f"ours by torch on dense counts ({missing()})" if missing() else "ours by Triton kernels"


def _extra_memory(batch: _Batch, make: Callable[[], Loss]) -> int:
    """Peak GPU memory of a step, bytes, in addition to what is allocated before."""
    _step(batch, make())  # compiles, and allocates the libraries' workspaces before measuring
    before = torch.cuda.memory_allocated(batch.device)
    torch.cuda.reset_peak_memory_stats(batch.device)
    _step(batch, make())
    return torch.cuda.max_memory_allocated(batch.device) - before


def _device_copy_rate(device: torch.device) -> float:
    """Rate at which a GPU copies memory, bytes per second, counted as in `copy_rate`."""
    source, target = torch.empty(2, _COPY_BYTES, dtype=torch.uint8, device=device)

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize(device)

    (seconds,) = interleaved(copy, rounds=10)
    return _COPY_BYTES / seconds

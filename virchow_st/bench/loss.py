"""``vst bench loss``: the multi-scale Poisson loss, forward and backward, beside plain PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from virchow_st.bench.limits import copy_rate
from virchow_st.bench.tables import Cell, Table, interleaved
from virchow_st.counts import BatchCounts
from virchow_st.devices import pick_device
from virchow_st.kernels.table import draw_patch
from virchow_st.losses import build_objective
from virchow_st.losses.reference import plain_poisson, saturated_poisson
from virchow_st.progress import SILENT, Progress
from virchow_st.types import PATCH_POSITIONS, SCALES_UM

_RTOL, _ATOL = 1e-3, 1e-7  # of float32 sums over a million bins, in another order


def measure(
    progress: Progress = SILENT,
    *,
    device: str = "auto",
    batch_size: int = 8,
    n_genes: int = 50,
    rounds: int = 8,
) -> list[Table]:
    """Measure on drawn counts, 95 % of them zero, and log-rates near the truth.

    Args:
        progress: who listens.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        batch_size: patches.
        n_genes: genes.
        rounds: timed passes; the best counts.

    Raises:
        AssertionError: losses or gradients of the two sides differ.
    """
    place = pick_device(device)
    progress.note(f"loss: {batch_size} patches, {n_genes} genes on {place}")
    rng = np.random.default_rng(0)
    drawn = [draw_patch(rng, n_genes) for _ in range(batch_size)]
    rate, dense, mask = (np.stack(x) for x in zip(*drawn, strict=True))
    counts = BatchCounts.of_dense(dense)
    log_rate = torch.from_numpy(np.log(rate + 0.01)).to(place).requires_grad_()
    dense_there = torch.from_numpy(dense.astype(np.float32)).to(place)
    mask_there = torch.from_numpy(mask).to(place)
    train_rate = torch.from_numpy(dense.mean((0, 2, 3))).float().clamp(min=1e-4)
    objective = build_objective("poisson", train_rate, torch.ones(4, n_genes), SCALES_UM).to(place)

    def forward_and_backward(losses: Tensor) -> tuple[Tensor, Tensor]:
        log_rate.grad = None
        losses.sum().backward()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        assert log_rate.grad is not None
        return losses.detach(), log_rate.grad

    def ours() -> tuple[Tensor, Tensor]:
        return forward_and_backward(objective(log_rate, counts, mask_there))

    def plain() -> tuple[Tensor, Tensor]:
        return forward_and_backward(plain_poisson(log_rate, dense_there, mask_there, SCALES_UM))

    least = saturated_poisson(dense_there, mask_there, SCALES_UM)
    (loss, gradient), (their_loss, their_gradient) = ours(), plain()
    torch.testing.assert_close(loss, their_loss - least, rtol=_RTOL, atol=_ATOL)
    torch.testing.assert_close(gradient, their_gradient, rtol=_RTOL, atol=_ATOL)
    plain_s, ours_s = interleaved(plain, ours, rounds=rounds)

    rows: list[list[Cell]] = [
        ["plain PyTorch", 1e3 * plain_s, 1.0],
        ["ours", 1e3 * ours_s, plain_s / ours_s],
    ]
    columns, notes = ["", "ms", "ratio to plain"], []
    notes.append(
        f"B={batch_size}, G={n_genes}, {len(counts.count):,} non-zeros "
        f"({len(counts.count) / dense.size:.1%}), 2, 4, 8 and 16 µm, {torch.get_num_threads()} "
        f"threads, {place.type}; losses and gradients equal. Plain: dense counts, "
        "poisson_nll_loss, avg_pool2d times the area, autograd. Ours takes the counts where there "
        "are any."
    )
    if place.type == "cpu":
        # The least there is to do: read the log-rates, write their gradient.
        n_bytes = 2 * 4 * dense.size
        floor = n_bytes / copy_rate(4 * PATCH_POSITIONS)
        columns.append("share of memcpy")
        rows = [
            [*row, floor / seconds] for row, seconds in zip(rows, (plain_s, ours_s), strict=True)
        ]
        notes.append(
            f"memcpy: {1e3 * floor:.1f} ms to move the log-rates and their gradient once, "
            f"{n_bytes / 1e6:.0f} MB, one thread."
        )
    title = "Multi-scale Poisson loss, forward and backward"
    return [Table(title, columns, rows, notes)]

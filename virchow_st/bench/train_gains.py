"""Gains of a training step from the fused loss, patches in GPU memory, and compilation."""

from __future__ import annotations

import torch
from torch import Tensor

from virchow_st.bench.tables import Cell, Table, interleaved
from virchow_st.bench.train_steps import epoch, trainer_of, wait
from virchow_st.config import TrainConfig
from virchow_st.models.losses.base import Counts, dense_counts
from virchow_st.models.losses.poisson import MultiScalePoisson
from virchow_st.models.losses.reference import plain_poisson
from virchow_st.run.panel import Panel
from virchow_st.store.reader import Store
from virchow_st.training.feed.resident import Resident
from virchow_st.training.feed.streamed import Streamed
from virchow_st.training.trainer import Trainer

GPU_BATCHES = (8, 64)
_FULL_SIZE = "hist2st-large"


class _PlainPoisson(MultiScalePoisson):
    """The same loss in plain PyTorch, up to a constant."""

    def forward(
        self,
        output_BGRC: Tensor,
        counts: Counts,
        tissue_mask_BRC: Tensor,
        measured_BG: Tensor | None = None,
    ) -> Tensor:
        assert measured_BG is None, "a single store measured all of its genes"
        dense_BGRC = dense_counts(counts, output_BGRC.device)
        return plain_poisson(output_BGRC, dense_BGRC, tissue_mask_BRC, self.scales_um)


def gains_table(
    store: Store,
    panel: Panel,
    device: str,
    batch_size: int,
    *,
    decoder: str = _FULL_SIZE,
    rounds: int = 3,
) -> Table:
    """Steps per second as the optimisations are added one after the other.

    Args:
        store: Store to train on.
        panel: Genes.
        device: Device, usually a GPU.
        batch_size: Patches per step.
        decoder: Value of ``--decoder``.
        rounds: Timed passes over the patches; the best time is used.
    """

    def trainer(compile: str = "never") -> Trainer:
        config = TrainConfig(
            decoder=decoder, batch_size=batch_size, accumulate=1, balance="equal", device=device,
            compile=compile,
        )  # fmt: skip
        return trainer_of(config, store, panel)

    plain, ours, compiled = trainer(), trainer(), trainer("always")
    dataset, there = ours.dataset, ours.device
    like = ours.learner.objective
    plain.learner.objective = _PlainPoisson(like.train_rate, like.scales_um).to(there)
    streamed, resident = Streamed(dataset, there), Resident(dataset, ours.epoch_members, there)
    sides = {
        "plain loss, from the store": epoch(plain, streamed),
        "and the fused loss": epoch(ours, streamed),
        "and resident": epoch(ours, resident),
        "and compiled": epoch(compiled, resident),
    }
    timed = interleaved(*sides.values(), rounds=rounds)
    n_steps = ours.schedule.steps_per_epoch
    rows: list[list[Cell]] = []
    before = timed[0]
    for (name, side), seconds in zip(sides.items(), timed, strict=True):
        peak: float | None = None
        if there.type == "cuda":
            torch.cuda.reset_peak_memory_stats(there)
            side()
            wait(there)
            peak = torch.cuda.max_memory_allocated(there) / 1e9
        rows.append(
            [name, 1e3 * seconds / n_steps, n_steps / seconds, before / seconds,
             timed[0] / seconds, peak]
        )  # fmt: skip
        before = seconds
    return Table(
        f"One gain after the other: {decoder} on {there.type}, B={batch_size}, G={len(panel)}",
        [
            "",
            "ms per step",
            "steps/s",
            "ratio to the row above",
            "ratio to plain",
            "GPU memory, GB",
        ],
        rows,
        ["Equal weights, AdamW, one step per batch. The memory holds all three trainers."],
    )

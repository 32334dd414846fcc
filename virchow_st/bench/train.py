"""``vst bench train``: steps per second from the store, from memory, and with the encoder."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from virchow_st.bench.extract import bins_for, extracted_store
from virchow_st.bench.limits import matmul_rate
from virchow_st.bench.tables import Cell, Table, interleaved
from virchow_st.bench.train_gains import GPU_BATCHES, gains_table
from virchow_st.bench.train_steps import Clocked, InLoop, InMemory, epoch, shorten, trainer_of, wait
from virchow_st.config import TrainConfig
from virchow_st.models.encoders import load_encoder
from virchow_st.models.encoders.base import Encoder
from virchow_st.run.panel import choose_panel
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.training.feed.base import Feed
from virchow_st.training.feed.resident import Resident
from virchow_st.training.feed.streamed import Streamed
from virchow_st.training.trainer import Trainer


def measure(
    folder: Path,
    progress: Progress = SILENT,
    *,
    device: str = "auto",
    encoder: Encoder | None = None,
    decoder: str = "hist2st",
    batch_size: int = 8,
    bins: int | None = None,
    genes: int = 1000,
    panel: str = "top50",
    rounds: int = 3,
) -> list[Table]:
    """Measure the training step on a store extracted from a simulated slide.

    Args:
        folder: Scratch folder.
        progress: Receives notes, warnings and step counts.
        device: Device of decoder and loss.
        encoder: Encoder; the stain encoder if None.
        decoder: Value of ``--decoder``.
        batch_size: Patches per step.
        bins: Side of the slide in bins; chosen for the encoder if None.
        genes: Number of genes on the slide.
        panel: Value of ``--panel``.
        rounds: Timed passes over the patches; the best time is used.

    Returns:
        Tables of the steps per second from each source, of the parts of a step, and on a GPU of the
        gains from the fused loss, patches in GPU memory and compilation.
    """
    encoder = load_encoder("stain") if encoder is None else encoder
    bins = bins_for(encoder) if bins is None else bins
    progress.note(f"train: extracting a slide of {bins}×{bins} bins")
    store = extracted_store(folder, encoder, bins, genes)
    config = TrainConfig(decoder=decoder, batch_size=batch_size, accumulate=1, device=device)
    genes_of_panel = choose_panel(panel, [store])
    trainer = trainer_of(config, store, genes_of_panel)
    members, n_steps = trainer.epoch_members, trainer.schedule.steps_per_epoch

    dataset, there = trainer.dataset, trainer.device
    feeds: dict[str, Feed] = {
        "from memory": InMemory(trainer),
        "resident": Resident(dataset, members, there),
        "from the store": Streamed(dataset, there),
    }
    progress.note(f"train: {n_steps} steps of {batch_size} patches, {decoder} on {there}")
    epochs = [epoch(trainer, feed) for feed in feeds.values()]
    timed = interleaved(*epochs, rounds=rounds)
    seconds = {name: s / n_steps for name, s in zip(feeds, timed, strict=True)}
    progress.note(f"train: one step with {encoder.name} in the loop")
    shorten(trainer, members[:batch_size])
    (in_loop,) = interleaved(epoch(trainer, InLoop(trainer, encoder)), rounds=1, warm_up=False)
    shorten(trainer, members)
    tables = [
        _steps_table(trainer, encoder, seconds | {"encoder in the loop": in_loop}),
        _shares_table(trainer, n_steps),
    ]
    if there.type == "cuda":
        for size in GPU_BATCHES:
            progress.note(f"train: hist2st-large at {size} patches, four ways")
            tables.append(gains_table(store, genes_of_panel, device, size, rounds=rounds))
    return tables


def _steps_table(trainer: Trainer, encoder: Encoder, seconds: dict[str, float]) -> Table:
    batch_size, n_genes = trainer.config.batch_size, len(trainer.dataset.panel)
    memory_s, loop_s = seconds["from memory"], seconds["encoder in the loop"]
    rows: list[list[Cell]] = [
        [name, 1e3 * s, 1 / s, s / memory_s, loop_s / s] for name, s in seconds.items()
    ]
    return Table(
        f"Training step: {trainer.config.decoder} on {trainer.device.type}, B={batch_size}, "
        f"G={n_genes}",
        ["", "ms per step", "steps/s", "ratio of time to memory", "ratio to the encoder"],
        rows,
        [
            "Poisson at 2, 4, 8 and 16 µm, GradNorm, AdamW, one step per batch; flips and "
            f"quarter turns. Tokens of {encoder.name}; in the loop it sees the stored patch "
            "images, and reading and warping the slide is not counted.",
            _memory_note(trainer.device),
        ],
    )


def _memory_note(device: torch.device) -> str:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    note = f"Peak memory of the process so far: {peak / 1e9:.2f} GB"
    if device.type == "cuda":
        note += f", on the GPU {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB"
    return note + "."


def _shares_table(trainer: Trainer, n_steps: int) -> Table:
    """Seconds of each part of a step; the device is synchronised between the parts."""
    clocked = Clocked(Streamed(trainer.dataset, trainer.device))
    spent = dict.fromkeys(("forward", "loss", "optimiser"), 0.0)
    device, started = trainer.device, 0.0

    def start(*_: Any) -> None:
        nonlocal started
        wait(device)
        started = time.perf_counter()

    def stop(name: str) -> Callable[..., None]:
        def add(*_: Any) -> None:
            wait(device)
            spent[name] += time.perf_counter() - started

        return add

    learner = trainer.learner
    hooks = [
        learner.decoder.register_forward_pre_hook(start),
        learner.decoder.register_forward_hook(stop("forward")),
        learner.objective.register_forward_pre_hook(start),
        learner.objective.register_forward_hook(stop("loss")),
        learner.optimizer.register_step_pre_hook(start),
        learner.optimizer.register_step_post_hook(stop("optimiser")),
    ]
    begun = time.perf_counter()
    epoch(trainer, clocked)()
    whole = time.perf_counter() - begun
    for hook in hooks:
        hook.remove()
    spent = {"waiting for a batch": clocked.seconds, **spent}
    spent["backward, GradNorm, clipping"] = whole - sum(spent.values())
    with FlopCounterMode(display=False) as counter:
        epoch(trainer, clocked)()
    flops, peak = counter.get_total_flops() / n_steps, matmul_rate(device)
    rows: list[list[Cell]] = [
        [name, 1e3 * seconds / n_steps, seconds / whole] for name, seconds in spent.items()
    ]
    return Table(
        "Where the time of a step on the store goes",
        ["", "ms per step", "share of the step"],
        [*rows, ["all", 1e3 * whole / n_steps, 1.0]],
        [
            f"The next batch is read while a step runs. {flops / 1e9:.1f} GFLOP per step in "
            f"products and convolutions, {flops * n_steps / whole / peak:.0%} of the "
            f"{peak / 1e12:.3g} TFLOP/s of this machine's matrix product."
        ],
    )

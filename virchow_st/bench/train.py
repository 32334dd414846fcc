"""``vst bench train``: steps a second from the store, from memory, with the encoder in the loop."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from virchow_st.bench.extract import bins_for, extracted_store
from virchow_st.bench.limits import matmul_rate
from virchow_st.bench.tables import Cell, Table, interleaved
from virchow_st.config import TrainConfig
from virchow_st.dataset import Batch, PatchDataset, training_statistics
from virchow_st.devices import pick_device
from virchow_st.encoders import load_encoder
from virchow_st.encoders.base import Encoder
from virchow_st.folds import Member, Split
from virchow_st.panel import Panel, choose_panel
from virchow_st.progress import SILENT, Progress
from virchow_st.store.reader import Store
from virchow_st.training import Trainer


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
    """Measure the trainer's own step, on a store that the encoder made of a simulated slide.

    Args:
        folder: scratch.
        progress: who listens.
        device: where decoder and loss run.
        encoder: which; the stain encoder when None.
        decoder: as ``--decoder``.
        batch_size: patches a step.
        bins: side of the slide; as fits the encoder when None.
        genes: number of genes on the slide.
        panel: as ``--panel``.
        rounds: timed passes over the patches; the best counts.
    """
    encoder = load_encoder("stain") if encoder is None else encoder
    bins = bins_for(encoder) if bins is None else bins
    progress.note(f"train: extracting a slide of {bins}×{bins} bins")
    store = extracted_store(folder, encoder, bins, genes)
    config = TrainConfig(decoder=decoder, batch_size=batch_size, accumulate=1, device=device)
    genes_of_panel = choose_panel(panel, [store])
    trainer = _trainer(config, store, genes_of_panel)
    # Whole batches only, so that every step is the same work.
    n_steps = max(1, len(store) // batch_size)
    members = tuple(Member(0, p % len(store)) for p in range(n_steps * batch_size))
    trainer.epoch_members, trainer.steps_per_epoch, trainer.epoch = members, n_steps, 1

    on_store = trainer.dataset
    in_memory = _InMemory([store], genes_of_panel, on_store.wants_image)
    in_memory.held = list(on_store.batches(members, batch_size, np.random.default_rng(0)))
    in_loop = _InLoop([store], genes_of_panel, wants_image=True)
    in_loop.encoder = encoder

    progress.note(f"train: {n_steps} steps of {batch_size} patches, {decoder} on {trainer.device}")
    memory_s, store_s = (
        seconds / n_steps
        for seconds in interleaved(
            _epoch(trainer, in_memory), _epoch(trainer, on_store), rounds=rounds
        )
    )
    progress.note(f"train: one step with {encoder.name} in the loop")
    trainer.epoch_members, trainer.steps_per_epoch = members[:batch_size], 1
    (loop_s,) = interleaved(_epoch(trainer, in_loop), rounds=1, warm_up=False)
    trainer.epoch_members, trainer.steps_per_epoch = members, n_steps
    return [
        _steps_table(trainer, encoder, memory_s, store_s, loop_s),
        _shares_table(trainer, [store], genes_of_panel, n_steps),
    ]


def _trainer(config: TrainConfig, store: Store, panel: Panel) -> Trainer:
    """A trainer of all patches of a store; it validates on one of them, and is not asked to."""
    dataset = PatchDataset([store], panel)
    members = tuple(Member(0, p) for p in range(len(store)))
    split = Split(members, members[:1], (), (str(store.manifest["records_xxh64"]),))
    statistics = training_statistics(dataset, members)
    return Trainer(config, dataset, split, statistics, pick_device(config.device))


def _epoch(trainer: Trainer, dataset: PatchDataset) -> Callable[[], None]:
    """An epoch of the trainer's own steps on a dataset, done when the device is."""

    def run() -> None:
        trainer.dataset = dataset
        trainer.train_epoch()
        _wait(trainer.device)

    return run


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- where batches come from --------------------------------------------------------------------


class _InMemory(PatchDataset):
    """Gives batches that were read before, whatever is asked for."""

    held: Sequence[Batch]

    def batches(
        self,
        members: Sequence[Member],
        batch_size: int,
        rng: np.random.Generator | None = None,
    ) -> Iterator[Batch]:
        return iter(self.held)


class _InLoop(PatchDataset):
    """Gives batches whose tokens the encoder makes of the stored images, at every step anew."""

    encoder: Encoder

    def batches(
        self,
        members: Sequence[Member],
        batch_size: int,
        rng: np.random.Generator | None = None,
    ) -> Iterator[Batch]:
        size = (self.encoder.image_px, self.encoder.image_px)
        for batch in super().batches(members, batch_size, rng):
            assert batch.image is not None
            images = np.stack(
                [cv2.resize(i, size, interpolation=cv2.INTER_AREA) for i in batch.image]
            )
            yield replace(batch, tokens=self.encoder.encode(images).tokens.astype(np.float16))


class _Clocked(PatchDataset):
    """Gives the store's batches and keeps the seconds that they were waited for."""

    seconds: float = 0.0

    def batches(
        self,
        members: Sequence[Member],
        batch_size: int,
        rng: np.random.Generator | None = None,
    ) -> Iterator[Batch]:
        coming = super().batches(members, batch_size, rng)
        while True:
            start = time.perf_counter()
            batch = next(coming, None)
            self.seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch


# --- tables -------------------------------------------------------------------------------------


def _steps_table(
    trainer: Trainer, encoder: Encoder, memory_s: float, store_s: float, loop_s: float
) -> Table:
    batch_size, n_genes = trainer.config.batch_size, len(trainer.dataset.panel)
    rows: list[list[Cell]] = [
        [name, 1e3 * s, 1 / s, s / memory_s, loop_s / s]
        for name, s in (
            ("from memory", memory_s),
            ("from the store", store_s),
            ("encoder in the loop", loop_s),
        )
    ]
    return Table(
        f"Training step: {trainer.config.decoder} on {trainer.device.type}, B={batch_size}, "
        f"G={n_genes}",
        ["", "ms a step", "steps/s", "ratio of time to memory", "ratio to the encoder"],
        rows,
        [
            "Poisson at 2, 4, 8 and 16 µm, GradNorm, AdamW, an optimiser step a batch; flips and "
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


def _shares_table(trainer: Trainer, stores: list[Store], panel: Panel, n_steps: int) -> Table:
    """Where a step's time goes: a clock at every border, the device waited for at each."""
    clocked = _Clocked(stores, panel, trainer.dataset.wants_image)
    spent = dict.fromkeys(("forward", "loss", "optimiser"), 0.0)
    device, started = trainer.device, 0.0

    def start(*_: Any) -> None:
        nonlocal started
        _wait(device)
        started = time.perf_counter()

    def stop(name: str) -> Callable[..., None]:
        def add(*_: Any) -> None:
            _wait(device)
            spent[name] += time.perf_counter() - started

        return add

    hooks = [
        trainer.decoder.register_forward_pre_hook(start),
        trainer.decoder.register_forward_hook(stop("forward")),
        trainer.objective.register_forward_pre_hook(start),
        trainer.objective.register_forward_hook(stop("loss")),
        trainer.optimizer.register_step_pre_hook(start),
        trainer.optimizer.register_step_post_hook(stop("optimiser")),
    ]
    begun = time.perf_counter()
    _epoch(trainer, clocked)()
    whole = time.perf_counter() - begun
    for hook in hooks:
        hook.remove()
    spent = {"waiting for a batch": clocked.seconds, **spent}
    spent["backward, GradNorm, clipping"] = whole - sum(spent.values())
    with FlopCounterMode(display=False) as counter:
        _epoch(trainer, clocked)()
    flops, peak = counter.get_total_flops() / n_steps, matmul_rate(device)
    rows: list[list[Cell]] = [
        [name, 1e3 * seconds / n_steps, seconds / whole] for name, seconds in spent.items()
    ]
    return Table(
        "Where the time of a step on the store goes",
        ["", "ms a step", "share of the step"],
        [*rows, ["all", 1e3 * whole / n_steps, 1.0]],
        [
            f"The next batch is read while a step runs. {flops / 1e9:.1f} GFLOP a step in "
            f"products and convolutions, {flops * n_steps / whole / peak:.0%} of the "
            f"{peak / 1e12:.3g} TFLOP/s of this machine's matrix product."
        ],
    )

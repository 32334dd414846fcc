"""Training steps for timing: a trainer on one store, its epochs, and several feeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from virchow_st.config import TrainConfig
from virchow_st.models.encoders.base import Encoder
from virchow_st.models.losses.base import on_device
from virchow_st.run.panel import Panel
from virchow_st.run.split import Member, Split
from virchow_st.run.transcriptome import RunGenes
from virchow_st.runtime.devices import pick_device
from virchow_st.runtime.progress import SILENT
from virchow_st.store.reader import Store
from virchow_st.training.dataset import BatchPlan, PatchDataset, plans
from virchow_st.training.feed.base import DeviceBatch, Feed
from virchow_st.training.start import starting_point
from virchow_st.training.statistics import training_statistics
from virchow_st.training.trainer import Trainer


def trainer_of(config: TrainConfig, store: Store, genes: Panel | RunGenes) -> Trainer:
    """Build a trainer on all patches of a store; its validation patch is not used.

    With the genes of ``--panel all`` its factors are fitted to the store; the decoder never begins
    as a regression.

    An epoch has whole batches only, so that every step is the same work; patches repeat if a store
    has too few for one batch.
    """
    if isinstance(genes, Panel):
        genes = RunGenes(genes, genes)
    dataset = PatchDataset([store], genes.all)
    members = tuple(Member(0, p) for p in range(len(store)))
    record = str(store.manifest["records_xxh64"])
    split = Split(members, members[:1], (), (record,))
    statistics = training_statistics(dataset, members)
    start = starting_point(dataset, members, statistics, genes, config, False, SILENT)
    device = pick_device(config.device)
    trainer = Trainer(config, dataset, split, statistics, device, start=start)
    n_steps = max(1, len(store) // config.batch_size)
    shorten(trainer, [Member(0, p % len(store)) for p in range(n_steps * config.batch_size)])
    trainer.epoch = 1
    return trainer


def shorten(trainer: Trainer, members: Sequence[Member]) -> None:
    """Restrict the epoch of a trainer to these patches, with one batch per step."""
    trainer.epoch_members = tuple(members)
    n_steps = len(members) // trainer.config.batch_size
    trainer.schedule = replace(trainer.schedule, steps_per_epoch=n_steps)


def epoch(trainer: Trainer, feed: Feed) -> Callable[[], None]:
    """Run an epoch of training steps on a feed; waits for the device."""

    def run() -> None:
        trainer.feed = feed
        trainer.train_epoch()
        wait(trainer.device)

    return run


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class InMemory:
    """Feed of batches prepared before, independent of the requested patches.

    Args:
        trainer: Trainer whose patches are used, in random orientations.
    """

    def __init__(self, trainer: Trainer) -> None:
        rng = np.random.default_rng(0)
        chosen = plans(trainer.epoch_members, trainer.config.batch_size, rng)
        self._held = [_on(trainer, plan) for plan in chosen]

    def batches(self, plans: Sequence[BatchPlan]) -> Iterator[DeviceBatch]:
        """See `Feed`."""
        return iter(self._held[: len(plans)])


@dataclass(frozen=True)
class InLoop:
    """Feed that encodes the stored images to tokens at every step."""

    trainer: Trainer
    encoder: Encoder

    def batches(self, plans: Sequence[BatchPlan]) -> Iterator[DeviceBatch]:
        """See `Feed`."""
        dataset = self.trainer.dataset
        with_image = PatchDataset(dataset.stores, dataset.panel, wants_image=True)
        size = (self.encoder.image_px, self.encoder.image_px)
        for plan in plans:
            image = with_image.load(plan.members, plan.turns).image
            assert image is not None
            views = np.stack([cv2.resize(i, size, interpolation=cv2.INTER_AREA) for i in image])
            tokens = self.encoder.encode(views).tokens.astype(np.float16)
            there = torch.from_numpy(tokens).to(self.trainer.device)
            yield replace(_on(self.trainer, plan), tokens=there)


def _on(trainer: Trainer, plan: BatchPlan) -> DeviceBatch:
    """Read a batch and copy it to the trainer's device."""
    batch, device = trainer.dataset.load(plan.members, plan.turns), trainer.device
    on_cpu = device.type == "cpu"
    mask = torch.from_numpy(batch.tissue_mask).to(device)
    exposure = mask if batch.exposure is None else torch.from_numpy(batch.exposure).to(device)
    return DeviceBatch(
        members=batch.members,
        tokens=torch.from_numpy(batch.tokens).to(device),
        image=None if batch.image is None else torch.from_numpy(batch.image).to(device),
        counts=batch.targets if on_cpu else on_device(batch.targets, device),
        tissue_mask=mask,
        exposure=exposure,
    )


class Clocked:
    """Wraps a feed and measures the seconds spent waiting for its batches."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.seconds = 0.0

    def batches(self, plans: Sequence[BatchPlan]) -> Iterator[DeviceBatch]:
        """See `Feed`."""
        coming = self._feed.batches(plans)
        while True:
            start = time.perf_counter()
            batch = next(coming, None)
            self.seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch

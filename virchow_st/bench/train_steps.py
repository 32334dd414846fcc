"""Training steps to be timed: a trainer of one store, its epochs on any feed, and such feeds."""

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
from virchow_st.runtime.devices import pick_device
from virchow_st.store.reader import Store
from virchow_st.training.dataset import BatchPlan, PatchDataset, plans
from virchow_st.training.feed.base import DeviceBatch, Feed
from virchow_st.training.statistics import training_statistics
from virchow_st.training.train import Trainer


def trainer_of(config: TrainConfig, store: Store, panel: Panel) -> Trainer:
    """A trainer of all patches of a store; it validates on one of them, and is not asked to.

    Its epoch is of whole batches only, so that every step is the same work; patches of a store that
    has too few for one come again.
    """
    dataset = PatchDataset([store], panel)
    members = tuple(Member(0, p) for p in range(len(store)))
    record = str(store.manifest["records_xxh64"])
    split = Split(members, members[:1], (), (record,))
    statistics = training_statistics(dataset, members)
    trainer = Trainer(config, dataset, split, statistics, pick_device(config.device))
    n_steps = max(1, len(store) // config.batch_size)
    shorten(trainer, [Member(0, p % len(store)) for p in range(n_steps * config.batch_size)])
    trainer.epoch = 1
    return trainer


def shorten(trainer: Trainer, members: Sequence[Member]) -> None:
    """Let a trainer's epoch be over these patches, a batch a step."""
    trainer.epoch_members = tuple(members)
    n_steps = len(members) // trainer.config.batch_size
    trainer.schedule = replace(trainer.schedule, steps_per_epoch=n_steps)


def epoch(trainer: Trainer, feed: Feed) -> Callable[[], None]:
    """An epoch of the trainer's own steps on a feed, done when the device is."""

    def run() -> None:
        trainer.feed = feed
        trainer.train_epoch()
        wait(trainer.device)

    return run


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class InMemory:
    """Batches that were made before, whatever is asked for.

    Args:
        trainer: whose dataset and patches they are of, turned at random.
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
    """Batches whose tokens the encoder makes of the stored images, at every step anew."""

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
    """A batch on the trainer's device, read and sent on the spot."""
    batch, device = trainer.dataset.load(plan.members, plan.turns), trainer.device
    on_cpu = device.type == "cpu"
    return DeviceBatch(
        members=batch.members,
        tokens=torch.from_numpy(batch.tokens).to(device),
        image=None if batch.image is None else torch.from_numpy(batch.image).to(device),
        counts=batch.targets if on_cpu else on_device(batch.targets, device),
        tissue_mask=torch.from_numpy(batch.tissue_mask).to(device),
    )


class Clocked:
    """A feed, and the seconds that its batches were waited for."""

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

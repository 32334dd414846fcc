"""The training loop: epochs over the training patches, validation and checkpoints.

One optimiser step is `virchow_st.training.learner.Learner.step`; `virchow_st.training.train` opens
what a run needs and writes its directory.

Shape suffixes: B patches, G genes, R = C = bins per side at 2 µm, S scales.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.models.decoders.plugins import package_of
from virchow_st.run.checkpoint import CheckpointWriter, save_checkpoint
from virchow_st.run.history import History, by_scale, summary
from virchow_st.run.integrity import file_hashes
from virchow_st.run.lock import CHECKPOINTS
from virchow_st.run.split import Split
from virchow_st.runtime.distributed import ALONE, Processes
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.training.dataset import BatchPlan, PatchDataset, plans
from virchow_st.training.feed import open_feed
from virchow_st.training.feed.base import Feed
from virchow_st.training.forward import worth_compiling
from virchow_st.training.learner import Learner
from virchow_st.training.loss_watch import LossWatch
from virchow_st.training.schedule import Schedule
from virchow_st.training.stain_spread import variation_from_data
from virchow_st.training.start import NO_START, Start
from virchow_st.training.statistics import TrainingStatistics
from virchow_st.training.validation import ValidationSums


class Trainer:
    """The loop: epochs over the training patches, each followed by validation and a checkpoint.

    Args:
        config: Settings of the run.
        dataset: Patches of the run.
        split: Training and validation patches.
        statistics: Means and standard deviations of the training patches.
        device: Device of decoder and loss.
        processes: Processes that share every batch.
        progress: Receives notes on precision, compilation and the feed.
        start: Factors, and what the decoder begins as.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: PatchDataset,
        split: Split,
        statistics: TrainingStatistics,
        device: torch.device,
        processes: Processes = ALONE,
        progress: Progress = SILENT,
        start: Start = NO_START,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.split = split
        self.device = device
        self.processes = processes
        self.schedule = Schedule.of(config, len(split.train))
        self.epoch_members = split.train * self.schedule.passes
        stain_variation = config.stain_variation
        if stain_variation < 0:
            # On the first alone, so that all processes vary by the same.
            stain_variation = processes.from_first(
                lambda: variation_from_data(dataset, split.train)
            )
            progress.note(
                f"stain variation {stain_variation:.2f}, from how the training patients differ"
            )
        compiled = worth_compiling(config, device, self.schedule.total * config.accumulate)
        self.learner = Learner(
            config,
            dataset,
            split.train,
            statistics,
            device,
            processes,
            compiled,
            self.schedule.total,
            stain_variation,
            start.regression,
            start.factors,
        )
        self.scales_um = self.learner.objective.scales_um
        if about := self.learner.forward.about:
            progress.note(f"the decoder runs {about}")
        dataset.wants_image = self.learner.decoder.wants_image
        dataset.margin_um = self.learner.decoder.margin_um
        members = split.train + split.validation
        self.feed: Feed = open_feed(dataset, members, device, progress, processes.local_size)
        self.epoch = 0
        self.best_epoch = 0
        self.best_score = math.inf
        self.first_losses: list[float] | None = None
        self.files: dict[str, str] = {}
        self.exposure_xxh64: str | None = None

    def fit(self, run: Path, progress: Progress) -> None:
        """Train for all epochs, or until validation has not improved for ``patience`` epochs."""
        if self.first_losses is None:
            self.first_losses = self.validate()[0].tolist()
        history = History(run, self.epoch) if self.processes.is_first else None
        with ExitStack() as opened:
            writer = opened.enter_context(closing(CheckpointWriter()))
            if history is not None:
                opened.enter_context(closing(history))
            began, first_epoch, seen = time.perf_counter(), self.epoch, ""
            while self.epoch < self.config.epochs and not self._out_of_patience():
                self.epoch += 1
                started = time.perf_counter()
                train_losses = self.train_epoch(progress, seen)
                seconds = time.perf_counter() - started
                losses, pcc = self.validate()
                is_best = self._take_score(score := self._score(losses))
                if history is None:
                    continue
                step = self.epoch * self.schedule.steps_per_epoch
                line = {
                    "epoch": self.epoch,
                    "step": step,
                    "lr": self.config.lr * self.schedule.share(step - 1),
                    "train": {"loss": by_scale(self.scales_um, train_losses)},
                    "weights": by_scale(self.scales_um, self.learner.balance.weights),
                    "validation": {
                        "loss": by_scale(self.scales_um, losses),
                        "pcc": by_scale(self.scales_um, pcc),
                        "score": score,
                    },
                    "best": is_best,
                    "seconds": round(seconds, 3),
                    "patches_per_s": round(len(self.epoch_members) / seconds, 2),
                }
                history.add(line)
                self.save(run, is_best, writer)
                seen = f", PCC {_texts(pcc)}, best epoch {self.best_epoch}"
                an_epoch = (time.perf_counter() - began) / (self.epoch - first_epoch)
                left = an_epoch * (self.config.epochs - self.epoch)
                progress.note(f"{summary(line, self.config.epochs)}{_time_left(left)}")
        if history is not None:
            history.finish(self.best_epoch, {"split_xxh64": self.split.xxh64(self.dataset.stores)})

    def train_epoch(self, progress: Progress = SILENT, seen: str = "") -> Tensor:
        """Run the optimiser steps of one epoch; returns the mean loss at each scale, (S,).

        Args:
            progress: Receives the count of every step.
            seen: Last validation result as text, shown with the progress.
        """
        # Seeded by epoch, so that a resumed run continues exactly as an uninterrupted one.
        rng = np.random.default_rng([self.config.seed, self.epoch])
        torch.manual_seed(int(rng.integers(2**31)))
        self.learner.decoder.train()
        batches = plans(self.epoch_members, self.config.batch_size, rng)
        own_batches = self.feed.batches([self._own(batch) for batch in batches])
        watch = LossWatch(len(self.scales_um), self.device, self._not_finite)
        before = (self.epoch - 1) * self.schedule.steps_per_epoch
        started, n_seen = time.perf_counter(), 0
        for i in range(self.schedule.steps_per_epoch):
            in_step = batches[i * self.config.accumulate : (i + 1) * self.config.accumulate]
            step = before + i
            self.learner.step(step, self.schedule.share(step), in_step, own_batches, watch)
            n_seen += sum(map(len, in_step))
            rate = n_seen / (time.perf_counter() - started)
            detail = f"epoch {self.epoch}, loss {_texts(watch.means)}, {rate:.3g} patches/s{seen}"
            progress.step(step + 1, self.schedule.total, "steps", detail)
        watch.finish()
        return watch.sums_S / len(self.epoch_members)

    @torch.inference_mode()
    def validate(self) -> tuple[Tensor, Tensor]:
        """Mean loss and mean per-gene PCC on the validation patches, (S,) each."""
        learner, members = self.learner, self.split.validation
        learner.eval_decoder.eval()
        sums = ValidationSums(self.scales_um, len(learner.objective.train_rate), self.device)
        batches = plans(members, self.config.batch_size)
        for batch in self.feed.batches(batches[self.processes.rank :: self.processes.size]):
            output_BGRC = learner.forward.of(learner.eval_decoder, batch)
            measured = batch.measured
            losses_S = learner.objective(output_BGRC, batch.counts, batch.exposure, measured)
            counts = learner.objective.panel_counts(batch.counts)
            rates = learner.objective.rate(output_BGRC)
            if batch.exposure is not batch.tissue_mask:
                rates = rates * batch.exposure[:, None]
            if measured is not None:
                measured = learner.objective.panel_measured(measured)
            sums.add(batch, counts, rates, losses_S, measured)
        return sums.compute(len(members), self.processes)

    def _own(self, batch: BatchPlan) -> BatchPlan:
        """The process's part of a batch; a patch that counts as nothing where it has none."""
        return batch[self.processes.part(len(batch))] or batch[:1]

    def _score(self, losses_S: Tensor) -> float:
        """Mean over scales of the loss relative to that of the gene means, which start the decoder.

        The ratio gives all scales the same influence.
        """
        score = float((losses_S.cpu() / torch.tensor(self.first_losses)).mean())
        if math.isfinite(score):
            return score
        raise self.processes.error_for_rank(
            ConfigError(
                f"the validation loss is not finite after epoch {self.epoch}; the last checkpoint "
                f"is kept, lower --lr"
            )
        )

    def _not_finite(self, batch: BatchPlan) -> BaseException:
        names = ", ".join(f"patch {m.patch} of store {m.store}" for m in batch.members)
        return self.processes.error_for_rank(
            ConfigError(
                f"the loss is not finite in epoch {self.epoch} at the batch of {names}; the last "
                f"checkpoint is kept, lower --lr"
            )
        )

    def _take_score(self, score: float) -> bool:
        """Record the score if it is the best so far; returns whether it is."""
        if score >= self.best_score:
            return False
        self.best_score, self.best_epoch = score, self.epoch
        return True

    def _out_of_patience(self) -> bool:
        return self.epoch - self.best_epoch >= self.config.patience

    # --- checkpoints --------------------------------------------------------------------------

    def save_first(self, run: Path, files: dict[str, str], exposure_xxh64: str | None) -> None:
        """Write the checkpoints of a run that begins, with the hashes of its files."""
        self.files, self.exposure_xxh64 = files, exposure_xxh64
        self.save(run, is_best=True)

    def save(self, run: Path, is_best: bool, writer: CheckpointWriter | None = None) -> None:
        """Write ``checkpoints/last``, and ``checkpoints/best`` if the epoch is the best so far.

        Args:
            run: Run directory.
            is_best: Whether the epoch is the best so far.
            writer: Writes in the background; if None, the files are complete on return.
        """
        manifest = self.dataset.stores[0].manifest
        state = {
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_score": self.best_score if self.best_epoch else None,
            "first_losses": self.first_losses,
            "split_xxh64": self.split.xxh64(self.dataset.stores),
            "grid": manifest["grid"],
            "dim": manifest["dim"],
            "encoder": manifest["encoder"],
            "token_layout": manifest["token_layout"],
            "files": self.files,
        }
        if self.learner.n_factors:
            state["n_factors"] = self.learner.n_factors
        if package := package_of(self.config.decoder):
            state["decoder_package"] = package
        if self.exposure_xxh64 is not None:
            state["exposure_xxh64"] = self.exposure_xxh64
        write = save_checkpoint if writer is None else writer.save
        if is_best:
            write(run / CHECKPOINTS / "best", self.learner.inference_modules(), state)
        write(
            run / CHECKPOINTS / "last",
            self.learner.training_modules(),
            state,
            self.learner.optimizer,
        )

    def load(self, run: Path) -> None:
        """Continue from ``checkpoints/last``."""
        state = self.learner.load(run / CHECKPOINTS / "last")
        self.epoch, self.best_epoch = state["epoch"], state["best_epoch"]
        self.best_score = math.inf if state["best_score"] is None else state["best_score"]
        self.first_losses = state["first_losses"]
        self.files = state["files"] if "files" in state else file_hashes(run)
        self.exposure_xxh64 = state.get("exposure_xxh64")
        n_scales = len(self.scales_um)
        if self.first_losses is not None and len(self.first_losses) != n_scales:
            raise ConfigError(
                f"{run / CHECKPOINTS / 'last'}: expected first_losses of {n_scales} scales; got "
                f"{len(self.first_losses)}; train again"
            )


def _time_left(seconds: float) -> str:
    """Time left in s, min or h; an empty text after the last epoch."""
    if seconds < 120:
        return f", {seconds:.0f} s left" if seconds else ""
    minutes = seconds / 60
    return f", {minutes:.0f} min left" if minutes < 120 else f", {minutes / 60:.1f} h left"


def _texts(values: Iterable[float]) -> str:
    return " ".join(f"{float(value):.3f}" for value in values)

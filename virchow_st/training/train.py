"""``vst train``: trains a decoder on stores and writes a run directory.

This module has the training loop; the optimiser step is
`virchow_st.training.learner.Learner.step`.

Shape suffixes: B patches, G genes, R = C = bins per side at 2 µm, S scales.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError, to_write
from virchow_st.models.decoders import decoder_class
from virchow_st.run.checkpoint import CheckpointWriter, save_checkpoint
from virchow_st.run.folder import begin, check_resumable
from virchow_st.run.history import History, by_scale, summary
from virchow_st.run.integrity import file_hashes
from virchow_st.run.lock import CHECKPOINTS, RunLock
from virchow_st.run.split import Split, split_patients, warn_of_alike_patients
from virchow_st.run.state import read_state
from virchow_st.run.transcriptome import RunGenes, check_factors, choose_genes
from virchow_st.runtime.devices import pick_device
from virchow_st.runtime.distributed import ALONE, Processes
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.store.reader import Store, open_store
from virchow_st.training.dataset import BatchPlan, PatchDataset, check_same_encoder, plans
from virchow_st.training.feed import open_feed
from virchow_st.training.feed.base import Feed
from virchow_st.training.forward import worth_compiling
from virchow_st.training.learner import Learner
from virchow_st.training.loss_watch import LossWatch
from virchow_st.training.schedule import Schedule
from virchow_st.training.stain_spread import variation_from_data
from virchow_st.training.start import NO_START, Start, starting_point
from virchow_st.training.statistics import TrainingStatistics, training_statistics
from virchow_st.training.validation import ValidationSums


def train(
    run: Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    progress: Progress = SILENT,
    processes: Processes = ALONE,
) -> None:
    """Train a decoder and write a run directory with checkpoints, history, panel and split.

    Args:
        run: Directory to write; must be new, or with ``resume`` a run of this configuration.
        config: Settings of the run; ``config.stores`` are the absolute paths of the stores.
        resume: Continue after the last finished epoch.
        progress: Receives notes, warnings and step counts.
        processes: Processes that train together, see
            `virchow_st.runtime.distributed.process_group`.

    Raises:
        ConfigError: Settings, stores or run directory cannot be used; or a loss is not finite.
        StoreError: A store is missing, damaged or not finished.
    """
    with RunLock() as lock:
        _train(run, config, resume, progress, processes, lock)


def _train(
    run: Path,
    config: TrainConfig,
    resume: bool,
    progress: Progress,
    processes: Processes,
    lock: RunLock,
) -> None:
    device, stores, split = processes.together(
        lambda: _open(config, processes), same=lambda opened: opened[2]
    )
    warn_of_alike_patients(stores, progress)
    genes = processes.from_first(lambda: _genes(run, config, stores, split, resume, progress, lock))
    dataset = PatchDataset(stores, genes.all)
    progress.note(
        f"{len(split.train)} patches to train on, {len(split.validation)} to validate, "
        f"{len(genes.all)} genes"
    )
    statistics = processes.from_first(lambda: training_statistics(dataset, split.train))
    start = processes.from_first(
        lambda: _start(run, config, dataset, split, statistics, genes, resume, progress)
    )
    trainer = Trainer(config, dataset, split, statistics, device, processes, progress, start)
    if resume:
        trainer.load(run)
    elif processes.is_first:  # epoch 0: a run stopped in its first epoch can resume
        begin(run, config, split, stores, genes, trainer.save_first, lock)
    try:
        trainer.fit(run, progress)
    except OSError as e:
        raise ConfigError(
            f"{e.filename or run}: cannot be written ({e.strerror}); what was finished is kept; "
            f"{to_write(e) or 'mend that'}, then go on with --resume"
        ) from None


def _open(config: TrainConfig, processes: Processes) -> tuple[torch.device, list[Store], Split]:
    """Open device and stores for this process, and divide the patches into a split."""
    check_factors(config)
    alone = processes.size == 1
    device = pick_device(config.device, None if alone else processes.local_rank)
    if config.batch_size % processes.size:
        raise ConfigError(
            f"batch_size: expected a multiple of the {processes.size} processes, which share a "
            f"batch; got {config.batch_size}"
        )
    if repeated := [path for path in config.stores if config.stores.count(path) > 1]:
        raise ConfigError(f"stores: expected each once; {repeated[0]} is given twice")
    stores = [open_store(path) for path in config.stores]
    split = split_patients(stores, config.test_patient, config.seed)
    check_same_encoder(stores)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device, stores, split


def _genes(
    run: Path,
    config: TrainConfig,
    stores: Sequence[Store],
    split: Split,
    resume: bool,
    progress: Progress,
    lock: RunLock,
) -> RunGenes:
    """Choose the genes of a new run, or read those of a run to resume after checking its folder."""
    if resume:
        lock.take(run)
        check_resumable(run, config, split)
        return RunGenes.read(run)
    lock.take_new(run)
    trainers = [s for s in stores if s.patient != config.test_patient]
    testers = [s for s in stores if s.patient == config.test_patient]
    return choose_genes(config.panel, trainers, testers, progress)


def _start(
    run: Path,
    config: TrainConfig,
    dataset: PatchDataset,
    split: Split,
    statistics: TrainingStatistics,
    genes: RunGenes,
    resume: bool,
    progress: Progress,
) -> Start:
    """What training begins with; of a run to resume only the shapes, as its checkpoint has all."""
    if resume:
        n_factors = read_state(run / CHECKPOINTS / "last").get("n_factors")
        return Start.to_resume(genes, n_factors)
    begins = decoder_class(config.decoder).begins_as_regression
    return starting_point(dataset, split.train, statistics, genes, config, begins, progress)


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
                    "train": {"loss": self._by_scale(train_losses)},
                    "weights": self._by_scale(self.learner.balance.weights),
                    "validation": {
                        "loss": self._by_scale(losses),
                        "pcc": self._by_scale(pcc),
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
            history.finish(self.best_epoch, {"split_xxh64": self._split_xxh64()})

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
            losses_S = learner.objective(output_BGRC, batch.counts, batch.tissue_mask)
            counts = learner.objective.panel_counts(batch.counts)
            sums.add(batch, counts, learner.objective.rate(output_BGRC), losses_S)
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

    def _by_scale(self, values_S: Tensor) -> dict[str, float | None]:
        return by_scale(self.scales_um, values_S)

    # --- checkpoints --------------------------------------------------------------------------

    def save_first(self, run: Path, files: dict[str, str]) -> None:
        """Write the checkpoints of a run that begins; ``files`` are the hashes of its files."""
        self.files = files
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
            "split_xxh64": self._split_xxh64(),
            "grid": manifest["grid"],
            "dim": manifest["dim"],
            "encoder": manifest["encoder"],
            "files": self.files,
        }
        if self.learner.n_factors:
            state["n_factors"] = self.learner.n_factors
        write = save_checkpoint if writer is None else writer.save
        if is_best:
            write(run / CHECKPOINTS / "best", self.learner.inference_modules(), state)
        write(
            run / CHECKPOINTS / "last",
            self.learner.training_modules(),
            state,
            self.learner.optimizer,
        )

    def _split_xxh64(self) -> str:
        return self.split.xxh64(self.dataset.stores)

    def load(self, run: Path) -> None:
        """Continue from ``checkpoints/last``."""
        state = self.learner.load(run / CHECKPOINTS / "last")
        self.epoch, self.best_epoch = state["epoch"], state["best_epoch"]
        self.best_score = math.inf if state["best_score"] is None else state["best_score"]
        self.first_losses = state["first_losses"]
        self.files = state["files"] if "files" in state else file_hashes(run)
        n_scales = len(self.scales_um)
        if self.first_losses is not None and len(self.first_losses) != n_scales:
            raise ConfigError(
                f"{run / CHECKPOINTS / 'last'}: expected first_losses of {n_scales} scales; got "
                f"{len(self.first_losses)}; train anew"
            )


def _time_left(seconds: float) -> str:
    """Time left in s, min or h; an empty text after the last epoch."""
    if seconds < 120:
        return f", {seconds:.0f} s left" if seconds else ""
    minutes = seconds / 60
    return f", {minutes:.0f} min left" if minutes < 120 else f", {minutes / 60:.1f} h left"


def _texts(values: Iterable[float]) -> str:
    return " ".join(f"{float(value):.3f}" for value in values)

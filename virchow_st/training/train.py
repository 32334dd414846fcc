"""``vst train``: trains a decoder on stores and writes a run directory.

This module opens stores and devices, chooses split and genes, and begins or resumes the run; the
training loop is `virchow_st.training.trainer.Trainer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError, to_write
from virchow_st.models.decoders import decoder_class
from virchow_st.run.folder import begin, check_resumable
from virchow_st.run.lock import CHECKPOINTS, RunLock
from virchow_st.run.split import Split, split_patients, warn_of_alike_patients
from virchow_st.run.state import read_state
from virchow_st.run.transcriptome import RunGenes, check_factors, choose_genes
from virchow_st.runtime.devices import pick_device
from virchow_st.runtime.distributed import ALONE, Processes
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.store.reader import Store, open_store
from virchow_st.training.dataset import PatchDataset, check_same_encoder
from virchow_st.training.exposure import training_exposure
from virchow_st.training.stain_spread import appearances
from virchow_st.training.start import Start, starting_point
from virchow_st.training.statistics import TrainingStatistics, training_statistics
from virchow_st.training.trainer import Trainer


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
        device, stores, split = processes.together(
            lambda: _open(config, processes), same=lambda opened: opened[2]
        )
        warn_of_alike_patients(stores, progress)
        _train(run, config, device, stores, split, resume, progress, processes, lock)


def train_on_split(
    run: Path,
    config: TrainConfig,
    stores: Sequence[Store],
    split: Split,
    *,
    resume: bool = False,
    progress: Progress = SILENT,
) -> None:
    """As `train`, on stores that are open and with a split that is made, such as one by place.

    Args:
        run: As for `train`.
        config: Settings of the run; it has no test patient.
        stores: The stores; a `virchow_st.store.part.StorePart` keeps some bins from being seen.
        split: Training, validation and test patches of the stores.
        resume, progress: As for `train`.

    Raises:
        ConfigError, StoreError: As for `train`.
    """
    with RunLock() as lock:
        device = _device(config, ALONE)
        _train(run, config, device, stores, split, resume, progress, ALONE, lock)


def _train(
    run: Path,
    config: TrainConfig,
    device: torch.device,
    stores: Sequence[Store],
    split: Split,
    resume: bool,
    progress: Progress,
    processes: Processes,
    lock: RunLock,
) -> None:
    genes = processes.from_first(lambda: _genes(run, config, stores, split, resume, progress, lock))
    exposure = processes.from_first(
        lambda: training_exposure(run, config, stores, split, resume, progress)
    )
    dataset = PatchDataset(stores, genes.all, exposure=exposure)
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
        looks = appearances(dataset, split.train)
        begin(run, config, split, stores, genes, trainer.save_first, lock, exposure, looks)
    try:
        trainer.fit(run, progress)
    except OSError as e:
        raise ConfigError(
            f"{e.filename or run}: cannot be written ({e.strerror}); what was finished is kept; "
            f"{to_write(e) or 'solve that'}, then continue with --resume"
        ) from None


def _open(config: TrainConfig, processes: Processes) -> tuple[torch.device, list[Store], Split]:
    """Open device and stores for this process, and divide the patches into a split."""
    device = _device(config, processes)
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
    return device, stores, split


def _device(config: TrainConfig, processes: Processes) -> torch.device:
    """The device of this process, after checking what needs no store."""
    check_factors(config)
    decoder_class(config.decoder)  # an unknown name fails at once, not after the stores are read
    alone = processes.size == 1
    device = pick_device(config.device, None if alone else processes.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


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
    return choose_genes(config.panel, trainers, testers, progress, config.genes_in)


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

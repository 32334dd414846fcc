"""``vst train --leave-one-out``: one run per held-out patient, and a summary over all of them.

docs/training.md describes the content of ``summary.json``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from virchow_st.cohort.choose import chosen_executor
from virchow_st.cohort.job import Done, Item
from virchow_st.cohort.run import run_cohort
from virchow_st.config import CohortConfig, TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.evaluation.evaluate import evaluate_run
from virchow_st.names import file_names
from virchow_st.run.folder import check_same_options, is_begun
from virchow_st.run.lock import RunLock
from virchow_st.run.panel import Panel
from virchow_st.run.results import SCORES, read_metrics
from virchow_st.run.split import read_split, split_patients
from virchow_st.runtime.atomic import write_json, write_text
from virchow_st.runtime.distributed import ALONE, Processes
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.settings import to_toml
from virchow_st.store.reader import open_store
from virchow_st.training.train import train
from virchow_st.types import SCALES_UM

FORMAT = "virchow_st.summary/1"
STATE = "folds.cohort"
"""Folder of a leave-one-out run in which the workers of its folds meet."""
_ELSEWHERE = ("device", "compile")  # settings that a fold may be continued with otherwise

Scores = Mapping[str, Mapping[str, Any]]  # by scale, then by name


def leave_one_out(
    run: Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    progress: Progress = SILENT,
    processes: Processes = ALONE,
    cohort: CohortConfig | None = None,
) -> dict[str, Any]:
    """Train and evaluate a run for every held-out patient, and write ``summary.json``.

    With an executor the folds are shared over workers, see `virchow_st.cohort.run_cohort`: a fold
    that fails stops no other, and one whose worker dies is continued by another.

    Args:
        run: Directory to write, with a run ``fold-PATIENT`` per patient; must be new, or with
            ``resume`` one of this configuration.
        config: Settings of the runs, without a test patient.
        resume: Keep finished folds and continue the one that was stopped.
        progress: Receives notes, warnings and step counts.
        processes: Processes that train together; the first one evaluates.
        cohort: Where the folds are trained; by default in this process, one after another.

    Returns:
        The content of ``summary.json``.

    Raises:
        ConfigError, StoreError: As for `train` and `evaluate`. The splits of all folds are made
            before the first is trained, so that unusable stores are found early. Of workers, after
            all folds were tried, if one failed.
    """
    cohort = cohort or CohortConfig()
    if cohort.executor != "none" and processes.size > 1:
        raise ConfigError(
            "torchrun: expected no --executor, since a fold on workers is trained by one process; "
            "leave out one of the two"
        )
    patients = processes.together(lambda: _patients(config), same=tuple)
    folds = fold_names(patients)
    with RunLock() as lock:
        processes.from_first(lambda: _begin(run, config, resume, lock))
        if cohort.executor != "none" or cohort.workers > 1:
            _on_workers(run, config, folds, cohort, progress)
        else:
            _one_after_another(run, config, folds, progress, processes)
        return processes.from_first(lambda: _write_summary(run, folds))


def _one_after_another(
    run: Path,
    config: TrainConfig,
    folds: Mapping[str, str],
    progress: Progress,
    processes: Processes,
) -> None:
    for i, patient in enumerate(folds):
        progress.note(f"fold {i + 1} of {len(folds)}: {patient} is the test")
        _finish_fold(run / folds[patient], _fold_config(config, patient), progress, processes)


def _on_workers(
    run: Path,
    config: TrainConfig,
    folds: Mapping[str, str],
    cohort: CohortConfig,
    progress: Progress,
) -> None:
    job = FoldJob(run.absolute(), config, dict(folds), Path.cwd())
    items = [Item(patient, {}, title=f"{patient} is the test") for patient in folds]
    with chosen_executor(cohort, config.device, run / STATE) as (executor, n_workers):
        outcomes = run_cohort(
            items, job, executor, run / STATE, n_workers=n_workers, progress=progress,
            hint="train it alone with --test-patient and --debug to see where",
        )  # fmt: skip
    if failed := [outcome for outcome in outcomes if outcome.state != "done"]:
        raise ConfigError(
            f"{run}: {len(failed)} of {len(folds)} folds are not finished; the first, "
            f"{failed[0].item}: {failed[0].text}; solve that, then continue with --resume"
        )


@dataclass
class FoldJob:
    """Training and evaluation of a fold, as a `virchow_st.cohort.Job`; items are patients.

    Attributes:
        run: The leave-one-out run.
        config: Its settings.
        folds: Folder of the fold that tests each patient.
        started_in: Folder that relative paths of the settings start from.
    """

    run: Path
    config: TrainConfig
    folds: Mapping[str, str]
    started_in: Path

    def settings(self) -> Mapping[str, Any]:
        """The settings that determine the result."""
        return {name: v for name, v in asdict(self.config).items() if name not in _ELSEWHERE}

    def is_there(self, item: Item) -> bool:
        """Whether the fold has been evaluated."""
        return (self.run / self.folds[item.key] / "metrics.json").is_file()

    def begin(self, progress: Progress) -> None:
        """Go where the command was typed; workers of a cluster start elsewhere."""
        os.chdir(self.started_in)

    def prepare(self, item: Item, progress: Progress) -> None:
        """Nothing: a fold reads its stores as it is trained."""

    def do(self, item: Item, prepared: None, attempt: int, progress: Progress) -> Done:
        """Train and evaluate the fold, or go on with one that was begun."""
        fold = self.run / self.folds[item.key]
        _finish_fold(fold, _fold_config(self.config, item.key), progress, ALONE)
        return Done("complete", {"epoch": read_metrics(fold)["epoch"]})


def _fold_config(config: TrainConfig, patient: str) -> TrainConfig:
    return replace(config, leave_one_out=False, test_patient=patient)


def fold_names(patients: Sequence[str]) -> dict[str, str]:
    """Folder of the fold that tests each patient."""
    files = file_names(patients)
    return {patient: f"fold-{file}" for patient, file in zip(patients, files, strict=True)}


def _finish_fold(fold: Path, config: TrainConfig, progress: Progress, processes: Processes) -> None:
    """Train and evaluate a fold as far as this is not done yet."""
    if processes.from_first(lambda: (fold / "metrics.json").is_file()):
        progress.note(f"{fold}: already finished")
        return
    if not processes.from_first(lambda: (fold / "best_metrics.json").is_file()):
        begun = processes.from_first(lambda: is_begun(fold))
        train(fold, config, resume=begun, progress=progress, processes=processes)
    processes.from_first(lambda: evaluate_run(fold, config.device, progress))


def _patients(config: TrainConfig) -> list[str]:
    """Sorted patients of the stores, after checking that each of them can be held out."""
    stores = [open_store(path) for path in config.stores]
    patients = sorted({store.patient for store in stores})
    for patient in patients:
        split_patients(stores, patient, config.seed)
    return patients


def _begin(run: Path, config: TrainConfig, resume: bool, lock: RunLock) -> None:
    if resume:
        lock.take(run)
        check_same_options(run, config)
        return
    lock.take_new(run)
    with lock.new_run(run) as aside:
        write_text(aside / "config.toml", to_toml(config))


# --- the summary --------------------------------------------------------------------------------


def _write_summary(run: Path, folds: Mapping[str, str]) -> dict[str, Any]:
    summary = summarise({patient: run / fold for patient, fold in folds.items()})
    write_json(run / "summary.json", summary)
    return summary


def summarise(folds: Mapping[str, Path]) -> dict[str, Any]:
    """Content of ``summary.json``, from the evaluated run of each test patient."""
    metrics = {patient: read_metrics(fold) for patient, fold in folds.items()}
    panels = [set(Panel.read(fold / "panel.tsv").ids) for fold in folds.values()]
    first = next(iter(metrics.values()))
    return {
        "format": FORMAT,
        "decoder": first["decoder"],
        "loss": first["loss"],
        "encoder": first["encoder"],
        "genes_in_all_folds": len(set.intersection(*panels)),
        "folds": {
            patient: {
                "run": fold.name,
                "split_xxh64": read_split(fold / "split.json")["xxh64"],
                **{name: metrics[patient][name] for name in ("epoch", "n_patches", "n_genes")},
            }
            for patient, fold in folds.items()
        },
        "scales": _over_folds({p: m["scales"] for p, m in metrics.items()}),
        "baselines": {
            name: _over_folds({p: m["baselines"][name] for p, m in metrics.items()})
            for name in first["baselines"]
        },
        "oracles": first["oracles"],
    }


def _over_folds(folds: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
    return {
        str(scale): {
            name: _spread({patient: of[str(scale)][name] for patient, of in folds.items()})
            for name in SCORES
        }
        for scale in SCALES_UM
    }


def _spread(values: Mapping[str, float | None]) -> dict[str, Any]:
    """Mean and standard deviation of a score over the folds where it is defined, and its values."""
    defined = [value for value in values.values() if value is not None]
    return {
        "mean": fmean(defined) if defined else None,
        "std": stdev(defined) if len(defined) > 1 else None,
        "folds": dict(values),
    }

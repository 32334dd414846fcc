"""Copies a run's files without names of patients and without paths, and updates their hashes.

The files that determine the predictions (tensors, panel and genes) are copied bit by bit. Settings
and split are rewritten with ``patient-1``, ``patient-2``, … in the order of the run's slides. The
checkpoint's ``state.json`` gets the hashes of these files, so that the copy is checked like any
run. The original is not changed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.names import file_names
from virchow_st.output.share.listing import BEST, best_of
from virchow_st.run.appearance import APPEARANCE
from virchow_st.run.integrity import CONFIG, GENES, PANEL, SPLIT, check_files, file_hashes
from virchow_st.run.overview import slide_names_of
from virchow_st.run.results import (
    METRICS,
    PER_GENE_FILE,
    read_metrics,
    read_per_gene,
    write_metrics,
)
from virchow_st.run.split import SplitFile, read_split, with_patients
from virchow_st.run.state import STATE, TENSORS, read_state, sealed, tensors_file
from virchow_st.runtime.atomic import write_json, write_text
from virchow_st.settings import from_toml, to_toml


def copy_nameless(run: Path, folder: Path, keep_names: bool = False) -> dict[str, Any]:
    """Copy the files of a shared run into a folder.

    Args:
        run: run directory; its files are compared with their hashes first.
        folder: an empty folder.
        keep_names: keep the patients' names; paths are taken out all the same.

    Returns:
        The state of the copied checkpoint.

    Raises:
        ConfigError: there is no such run, a file is damaged, or the scores are those of an earlier
            checkpoint.
    """
    if not run.is_dir():
        raise ConfigError(f"{run}: no such run; write it with `vst train … --run {run}`")
    state = read_state(best_of(run))
    check_files(run, state)
    split = read_split(run / SPLIT)
    if state.get("split_xxh64", split["xxh64"]) != split["xxh64"]:
        raise ConfigError(
            f"{run / SPLIT}: is not the split that the run was trained with; train again"
        )
    name_of = _new_names(split, keep_names)
    shared_split = with_patients(split, name_of)
    write_json(folder / SPLIT, dict(shared_split))
    config = _without_paths(from_toml(TrainConfig, run / CONFIG), shared_split, name_of)
    text = f"{to_toml(config)}\n# Hash of split.json: {shared_split['xxh64']}\n"
    write_text(folder / CONFIG, text)
    shutil.copyfile(run / PANEL, folder / PANEL)
    for name in (GENES, APPEARANCE):
        if (run / name).exists():
            shutil.copyfile(run / name, folder / name)
    best = folder / BEST
    best.mkdir(parents=True)
    shutil.copyfile(tensors_file(best_of(run), state), best / TENSORS)
    state = sealed({**state, "split_xxh64": shared_split["xxh64"], "files": file_hashes(folder)})
    (best / STATE).write_text(json.dumps(state, indent=1) + "\n", "utf-8")
    if (run / METRICS).is_file():
        _copy_scores(run, folder, state, split, name_of)
    return state


def _new_names(split: SplitFile, keep_names: bool) -> dict[str, str]:
    patients = dict.fromkeys(slide["patient"] for slide in split["slides"])
    if keep_names:
        return {patient: patient for patient in patients}
    return {patient: f"patient-{i}" for i, patient in enumerate(patients, 1)}


def _without_paths(
    config: TrainConfig, split: SplitFile, name_of: Mapping[str, str]
) -> TrainConfig:
    """Settings whose stores are called after the slides, and whose panel is a file's name alone."""
    slides = slide_names_of([slide["patient"] for slide in split["slides"]])
    prefix, colon, panel = config.panel.rpartition("all:")
    return replace(
        config,
        stores=tuple(f"{name}.vst" for name in file_names(slides)),
        test_patient=name_of.get(config.test_patient, ""),
        panel=f"{prefix}{colon}{Path(panel).name}",
    )


def _copy_scores(
    run: Path, folder: Path, state: Mapping[str, Any], split: SplitFile, name_of: Mapping[str, str]
) -> None:
    metrics = read_metrics(run)
    if metrics["epoch"] != state["epoch"]:
        raise ConfigError(
            f"{run / METRICS}: has the scores of epoch {metrics['epoch']}, and the best checkpoint "
            f"is now of epoch {state['epoch']}; run `vst evaluate {run}` again"
        )
    read_per_gene(run)  # refuses a damaged file
    shutil.copyfile(run / PER_GENE_FILE, folder / PER_GENE_FILE)
    patients = [slide["patient"] for slide in split["slides"]]
    renamed = slide_names_of([name_of[patient] for patient in patients])
    slide_of = dict(zip(slide_names_of(patients), renamed, strict=True))
    metrics["test_patients"] = [name_of[patient] for patient in metrics["test_patients"]]
    if "slides" in metrics:
        metrics["slides"] = {slide_of[name]: scores for name, scores in metrics["slides"].items()}
    write_metrics(folder, metrics)

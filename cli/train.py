"""``vst train``: train a decoder on stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virchow_st.config import CohortConfig, TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.runtime.progress import SILENT
from virchow_st_cli.cohorts import refuse_cohort, split_cohort
from virchow_st_cli.console import Console
from virchow_st_cli.options import build_config, config_options, with_console
from virchow_st_cli.scores import print_summary


@click.command(short_help="Train a decoder on stores.")
@click.argument("stores", nargs=-1, type=click.Path(path_type=Path))
@click.option("--run", required=True, type=click.Path(path_type=Path), help="directory to write")
@config_options(TrainConfig, skip=("stores",))
@config_options(CohortConfig)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="config.toml of an earlier run, whose settings are the defaults",
)
@click.option("--resume", is_flag=True, help="continue after the last finished epoch")
@with_console
def train(
    console: Console,
    stores: tuple[Path, ...],
    run: Path,
    config_file: Path | None,
    resume: bool,
    **options: Any,
) -> None:
    """Train a decoder on STORES; the stores of the test patient are held out.

    With --leave-one-out every patient is the test once, and --executor shares these folds over
    workers. Started by torchrun, the processes share every batch.
    """
    cohort, options = split_cohort(options)
    if resume and config_file is None and not stores:
        config_file = run / "config.toml"
    paths = tuple(str(store.resolve()) for store in stores)
    from virchow_st.runtime.distributed import process_group

    with process_group() as processes:
        config = processes.together(lambda: _train_config(options, config_file, paths))
        if not config.leave_one_out:
            refuse_cohort("--leave-one-out, whose folds are shared over workers")
        progress = console if processes.is_first else SILENT
        how: Any = {"resume": resume, "progress": progress, "processes": processes}
        if config.leave_one_out:
            from virchow_st.evaluation.leave_one_out import leave_one_out

            summary = leave_one_out(run, config, cohort=cohort, **how)
            if processes.is_first:
                print_summary(console, summary)
                console.result(f"{run / 'summary.json'}; each fold is a run, see vst figures")
            return
        from virchow_st.training.train import train as run_training

        run_training(run, config, **how)
        if processes.is_first:
            console.result(f"{run}: trained; next: vst evaluate {run}")


def _train_config(
    options: dict[str, Any], file: Path | None, stores: tuple[str, ...]
) -> TrainConfig:
    from virchow_st.store.patients import patient_name

    options["test_patient"] = patient_name(options["test_patient"])
    config = build_config(TrainConfig, options, file, stores=stores)
    if not config.stores:
        raise ConfigError("stores: expected the stores of at least two patients; got none")
    if not config.test_patient and not config.leave_one_out:
        raise ConfigError(
            "test patient: expected a name; give --test-patient, or --leave-one-out for all"
        )
    return config

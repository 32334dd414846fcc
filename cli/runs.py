"""``vst train`` and ``vst evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.runtime.progress import SILENT
from virchow_st_cli.console import Console
from virchow_st_cli.folds import print_summary
from virchow_st_cli.options import build_config, config_options, with_console
from virchow_st_cli.scores import print_comparison, print_scores, short_names


@click.command(short_help="Train a decoder on stores.")
@click.argument("stores", nargs=-1, type=click.Path(path_type=Path))
@click.option("--run", required=True, type=click.Path(path_type=Path), help="directory to write")
@config_options(TrainConfig, skip=("stores",))
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="a run's config.toml to repeat"
)
@click.option("--resume", is_flag=True, help="go on after the last finished epoch")
@with_console
def train(
    console: Console,
    stores: tuple[Path, ...],
    run: Path,
    config_file: Path | None,
    resume: bool,
    **options: Any,
) -> None:
    """Train a decoder on STORES; the test patient's are only set aside.

    With --leave-one-out every patient is the test once. Started by torchrun, the processes share
    every batch.
    """
    if resume and config_file is None and not stores:
        config_file = run / "config.toml"
    paths = tuple(str(store.resolve()) for store in stores)
    from virchow_st.runtime.distributed import process_group

    with process_group() as processes:
        config = processes.together(lambda: _train_config(options, config_file, paths))
        progress = console if processes.is_first else SILENT
        how: Any = {"resume": resume, "progress": progress, "processes": processes}
        if config.leave_one_out:
            from virchow_st.evaluation.leave_one_out import leave_one_out

            summary = leave_one_out(run, config, **how)
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
    config = build_config(TrainConfig, options, file, stores=stores)
    if not config.stores:
        raise ConfigError("stores: expected the stores of at least two patients; got none")
    if not config.test_patient and not config.leave_one_out:
        raise ConfigError(
            "test patient: expected a name; give --test-patient, or --leave-one-out for all"
        )
    return config


@click.command(short_help="Score runs on their test patient.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@click.option(
    "--truth",
    type=click.Path(path_type=Path),
    help="truth.h5 of a simulated test slide: compare with the true rates too",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    help="file to write the comparison of several runs to",
)
@with_console
def evaluate(
    console: Console,
    runs: tuple[Path, ...],
    device: str,
    truth: Path | None,
    json_file: Path | None,
) -> None:
    """Score the best decoder on the test patient: metrics.json, per_gene.csv, maps.

    Several runs of the same panel and test patient are also compared: is one better than another?
    """
    if json_file is not None and len(runs) == 1:
        raise ConfigError("--json: expected several runs to compare; got one, see its metrics.json")
    if json_file is not None and not json_file.parent.is_dir():
        raise ConfigError(f"--json: {json_file.parent} is no folder; make it first")
    from virchow_st.evaluation.evaluate import check_comparable
    from virchow_st.evaluation.evaluate import evaluate as run_evaluation
    from virchow_st.run.compare import compare_runs
    from virchow_st.runtime.atomic import write_json

    if len(runs) > 1:
        check_comparable(runs)
    metrics = [run_evaluation(run, device, console, truth) for run in runs]
    if len(runs) == 1:
        (only,) = metrics
        print_scores(console, {f"{only['decoder']}, {only['loss']}": only})
    else:
        names = short_names(runs)
        print_scores(console, dict(zip(names.values(), metrics, strict=True)))
        comparison = compare_runs(runs)
        print_comparison(console, comparison, names)
        if json_file is not None:
            write_json(json_file, comparison)
    for run in runs:
        console.result(f"{run / 'metrics.json'}; next: vst figures {run}")

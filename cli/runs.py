"""``vst train``, ``vst evaluate`` and ``vst figures``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError
from virchow_st_cli.console import Console
from virchow_st_cli.options import build_config, config_options, with_console
from virchow_st_cli.scores import print_scores

_RUN = click.argument("run", type=click.Path(path_type=Path))


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
    """Train a decoder on STORES; the test patient's are only set aside."""
    if resume and config_file is None and not stores:
        config_file = run / "config.toml"
    paths = tuple(str(store.resolve()) for store in stores)
    config = build_config(TrainConfig, options, config_file, stores=paths)
    if not config.stores:
        raise ConfigError("stores: expected the stores of at least two patients; got none")
    if not config.test_patient:
        raise ConfigError("test patient: expected a name; give --test-patient")
    from virchow_st.training import train as run_training

    run_training(run, config, resume=resume, progress=console)
    console.result(f"{run}: trained; next: vst evaluate {run}")


@click.command(short_help="Score a run on its test patient.")
@_RUN
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@with_console
def evaluate(console: Console, run: Path, device: str) -> None:
    """Score the best decoder on the test patient: metrics.json, per_gene.csv, maps."""
    from virchow_st.evaluate import evaluate as run_evaluation

    metrics = run_evaluation(run, device, console)
    print_scores(console, {metrics["loss"]: metrics})
    console.result(f"{run / 'metrics.json'}; next: vst figures {run}")


@click.command(short_help="Draw genes and training curves of a run.")
@_RUN
@click.option("--genes", help="symbols or ids with commas; the best predicted ones if left out")
@with_console
def figures(console: Console, run: Path, genes: str | None) -> None:
    """Draw one gene across H&E, prediction and observation, and the training curves."""
    from virchow_st.figures import draw_figures

    wanted = [g.strip() for g in genes.split(",") if g.strip()] if genes else None
    for path in draw_figures(run, wanted):
        console.result(str(path))

"""``vst predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virchow_st.config import PredictConfig
from virchow_st.runtime.interrupt import exit_code
from virchow_st_cli.console import Console
from virchow_st_cli.options import build_config, config_options, with_console


@click.command(short_help="Predict the rates of an H&E slide without counts.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("image", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="folder or file to write"
)
@click.option(
    "--also",
    multiple=True,
    type=click.Path(path_type=Path),
    help="another run with the same encoder and panel; the output then has mean and standard "
    "deviation over the runs",
)
@config_options(PredictConfig)
@with_console
def predict(
    console: Console,
    run: Path,
    image: Path,
    out: Path,
    also: tuple[Path, ...],
    **options: Any,
) -> int:
    """Predict the genes of RUN on all tissue of IMAGE, an H&E slide without counts.

    The output is a SpatialData folder with the H&E image, the tissue mask, and rates at 2 and 8 µm.
    An overview picture of tissue and patches is written next to it.
    """
    config = build_config(PredictConfig, options)
    from virchow_st.predict.slide import predict_slide

    try:
        done = predict_slide([run, *also], image, out, config, console)
    except KeyboardInterrupt as e:
        console.error("stopped; nothing was kept, the same command starts again")
        return exit_code(e)
    console.result(f"{done.path}: {done.n_patches} patches, {done.covered:.1%} of the tissue")
    return 0

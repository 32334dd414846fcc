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
@click.option("--out", required=True, type=click.Path(path_type=Path), help="what to write")
@click.option(
    "--also",
    multiple=True,
    type=click.Path(path_type=Path),
    help="another run of the same encoder and panel; the output is the mean and the spread",
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
    """Predict RUN's genes on the whole tissue of IMAGE, an H&E slide without counts.

    The output is a SpatialData folder with the slide's picture, its tissue, and rates at 2 and
    8 µm. A picture of the tissue and the patches comes beside it.
    """
    config = build_config(PredictConfig, options)
    from virchow_st.predict.slide import predict_slide

    try:
        done = predict_slide([run, *also], image, out, config, console)
    except KeyboardInterrupt as e:
        console.error("stopped; nothing was kept, the same command begins anew")
        return exit_code(e)
    console.result(f"{done.path}: {done.n_patches} patches, {done.covered:.1%} of the tissue")
    return 0

"""``vst report``: write the report of an evaluated run."""

from __future__ import annotations

from pathlib import Path

import click

from virchow_st.config import KEEP_PATHS
from virchow_st_cli.console import Console
from virchow_st_cli.options import with_console


@click.command(short_help="Write a run's report: figures and maps in one HTML file.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--genes",
    help="gene symbols or ids separated by commas, or a file of them, to show on the slide at "
    "every scale; default: all genes, but at 2 and 4 µm only the strongest",
)
@click.option(
    "--cells",
    type=click.Path(path_type=Path),
    help="cells of the test slide to show over its H&E: Space Ranger's outs, a .geojson or a label "
    "image",
)
@click.option("--keep-paths", is_flag=True, help=KEEP_PATHS)
@with_console
def report(
    console: Console, run: Path, genes: str | None, cells: Path | None, keep_paths: bool
) -> None:
    """Write RUN/report.html, which can be opened from disk without a network.

    It shows the settings of the run, its scores with ceiling, nulls and baselines, every gene, the
    figures, and the test slide with zoom: H&E, observed and predicted, compared under a divider.
    """
    from virchow_st.output.report import write_report
    from virchow_st.store.genes import split_names

    wanted = split_names(genes) if genes is not None else None
    path = write_report(run, wanted, console, keep_paths, cells)
    console.result(f"{path}: {path.stat().st_size / 1e6:.1f} MB; open it in a browser")

"""``vst report``."""

from __future__ import annotations

from pathlib import Path

import click

from virchow_st_cli.console import Console
from virchow_st_cli.options import with_console


@click.command(short_help="Write a run's report: figures and maps in one HTML file.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--genes",
    help="symbols or ids with commas, or a file of them, to show on the slide at every scale; "
    "else all genes, the strongest at 2 and 4 µm too",
)
@with_console
def report(console: Console, run: Path, genes: str | None) -> None:
    """Write RUN/report.html, which opens from disk and needs no network.

    It shows what was run, the scores beside ceiling, nulls and baselines, every gene, the figures,
    and the test slide: H&E, observed and predicted under a divider, with zoom.
    """
    from virchow_st.output.report import write_report
    from virchow_st.store.genes import split_names

    wanted = split_names(genes) if genes is not None else None
    path = write_report(run, wanted, console)
    console.result(f"{path}: {path.stat().st_size / 1e6:.1f} MB; open it in a browser")

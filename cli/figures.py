"""``vst figures``: draw the figures of an evaluated run."""

from __future__ import annotations

from pathlib import Path

import click

from virchow_st_cli.console import Console
from virchow_st_cli.options import with_console


@click.command(short_help="Draw genes, scores, calibration and the slides of a run.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--genes",
    help="gene symbols or ids separated by commas, or a file of them; default: the best predicted "
    "genes",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="another evaluated run with the same panel and test patches, to compare with",
)
@click.option(
    "--cells",
    type=click.Path(path_type=Path),
    help="cells of the test slide to draw too: Space Ranger's outs, a .geojson or a label image",
)
@with_console
def figures(
    console: Console, run: Path, genes: str | None, against: Path | None, cells: Path | None
) -> None:
    """Draw the figures of an evaluated RUN into RUN/figures, from its result files only."""
    from virchow_st.output.figures import draw_figures
    from virchow_st.store.genes import split_names

    wanted = split_names(genes) if genes is not None else None
    for path in draw_figures(run, wanted, against, console, cells):
        console.result(str(path))

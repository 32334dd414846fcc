"""``vst cells``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virchow_st.config import CellsConfig
from virchow_st.runtime.interrupt import exit_code
from virchow_st_cli.console import Console
from virchow_st_cli.options import build_config, config_options, with_console


@click.command(short_help="Write the expression of cells.")
@click.argument("source", metavar="STORE|RUN|FIELD", type=click.Path(path_type=Path))
@click.option(
    "--cells",
    required=True,
    type=click.Path(path_type=Path),
    help="Space Ranger's outs, a .geojson, a label image, or shapes of a SpatialData folder; or a "
    "segmenter: nuclei, instanseg, or one of another package",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="NAME.h5ad, NAME.zarr or NAME.geojson to write",
)
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="store of the slide, for observed UMIs beside those of a run or field",
)
@click.option(
    "--image",
    type=click.Path(path_type=Path),
    help="the slide's full-resolution image, in which a segmenter finds the cells",
)
@config_options(CellsConfig)
@with_console
def cells(
    console: Console,
    source: Path,
    cells: Path,
    out: Path,
    store: Path | None,
    image: Path | None,
    **options: Any,
) -> int:
    """Write cells × genes: observed UMIs of STORE, or expected ones of RUN or FIELD.

    RUN is an evaluated run, whose test slide is taken; FIELD is what vst predict, vst denoise or
    vst evaluate wrote. NAME.h5ad is an AnnData file; NAME.zarr a SpatialData folder that also holds
    the cells' outlines and the H&E picture; NAME.geojson their outlines and measurements for
    QuPath, with the genes of --genes.
    """
    config = build_config(CellsConfig, options)
    from virchow_st.output.cells.write import write_cells

    try:
        written, content = write_cells(source, cells, out, config, store, console, image)
    except KeyboardInterrupt as e:
        console.error("stopped; nothing was kept, the same command starts again")
        return exit_code(e)
    console.result(f"{written}: {content}")
    return 0

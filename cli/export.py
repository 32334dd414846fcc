"""``vst export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virchow_st.config import ExportConfig
from virchow_st.runtime.interrupt import exit_code
from virchow_st_cli.console import Console
from virchow_st_cli.options import build_config, config_options, with_console


@click.command(short_help="Write a run's maps, a store or a field for other programs.")
@click.argument("source", metavar="RUN|STORE|FIELD", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="folder or file to write"
)
@config_options(ExportConfig)
@with_console
def export(console: Console, source: Path, out: Path, **options: Any) -> int:
    """Export predictions of RUN on its test slide, counts of STORE, or genes of FIELD.

    The export of a run contains predicted rates and observed counts, that of a store its counts,
    that of a field (what vst predict wrote) the rates of some genes; all contain the H&E image and
    the tissue mask. The default format is a SpatialData folder.
    """
    config = build_config(ExportConfig, options)
    from virchow_st.output.export.write import export_run

    try:
        written, content = export_run(source, out, config, console)
    except KeyboardInterrupt as e:
        console.error("stopped; nothing was kept, the same command starts again")
        return exit_code(e)
    console.result(f"{written}: {content}")
    return 0

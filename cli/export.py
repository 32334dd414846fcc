"""``vst export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virchow_st.config import ExportConfig
from virchow_st.runtime.interrupt import exit_code
from virchow_st_cli.console import Console
from virchow_st_cli.options import build_config, config_options, with_console


@click.command(short_help="Write a run's maps or a store for other programs.")
@click.argument("source", metavar="RUN|STORE", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="what to write")
@config_options(ExportConfig)
@with_console
def export(console: Console, source: Path, out: Path, **options: Any) -> int:
    """Write what RUN predicted on its test slide, or what STORE holds, for other programs.

    A run gives rates beside counts, a store its counts; both the H&E and the tissue. The default is
    a SpatialData folder.
    """
    config = build_config(ExportConfig, options)
    from virchow_st.output.export.write import export_run

    try:
        written, said = export_run(source, out, config, console)
    except KeyboardInterrupt as e:
        console.error("stopped; nothing was kept, the same command begins anew")
        return exit_code(e)
    console.result(f"{written}: {said}")
    return 0

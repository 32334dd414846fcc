"""``vst simulate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from virchow_st.config import SimulateConfig
from virchow_st_cli.console import Console
from virchow_st_cli.options import build_config, config_options, with_console


@click.command(short_help="Simulate Visium HD slides with known rates.")
@click.argument("out", type=click.Path(path_type=Path))
@config_options(SimulateConfig)
@with_console
def simulate(console: Console, out: Path, **options: Any) -> None:
    """Simulate Visium HD slides with known true rates, in the layout of Space Ranger."""
    from virchow_st.simulate import simulate_cohort

    config = build_config(SimulateConfig, options)
    for folder in simulate_cohort(out, config, console.note):
        console.result(str(folder))

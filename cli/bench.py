"""``vst bench``: speed of the package on this machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from virchow_st.bench import TARGETS, run_target
from virchow_st.errors import ConfigError
from virchow_st.runtime.atomic import write_json
from virchow_st.runtime.interrupt import Terminated
from virchow_st.runtime.lock import locked
from virchow_st_cli.console import Console
from virchow_st_cli.options import with_console


class _Stopped(click.ClickException):
    """Ended by Ctrl-C."""

    exit_code = 130


class _Terminated(_Stopped):
    """Ended by SIGTERM."""

    exit_code = 143


@click.command(short_help="Measure speed on this machine.")
@click.argument("target", type=click.Choice([*TARGETS, "all"]), default="all")
@click.option(
    "--encoder",
    default="stain",
    show_default=True,
    help="encoder for the targets extract and train",
)
@click.option("--weights", default="", help="local weights file of the encoder, instead of the hub")
@click.option(
    "--random-weights",
    is_flag=True,
    help="use Virchow2's architecture with random weights, to measure its speed without access",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path),
    help="file to write the tables to, as JSON",
)
@with_console
def bench(
    console: Console,
    target: str,
    encoder: str,
    weights: str,
    random_weights: bool,
    device: str,
    json_path: Path | None,
) -> None:
    """Measure speed on this machine, compared with a plain implementation and the hardware limit.

    The data are generated in a temporary folder that is removed afterwards, on the disk
    that TMPDIR selects.
    """
    from virchow_st.bench.tables import Table, document, machine_line
    from virchow_st.runtime.devices import pick_device

    pick_device(device)  # a wrong option fails at once, not after minutes
    if json_path and not json_path.absolute().parent.is_dir():
        raise ConfigError(f"{json_path}: expected a file in an existing folder; create the folder")
    tables: list[Table] = []
    targets = TARGETS if target == "all" else (target,)
    try:
        for name in targets:
            # One folder per target, so that the disk never holds the data of more than one.
            with tempfile.TemporaryDirectory(prefix="vst-bench-") as scratch:
                measured = run_target(
                    name,
                    Path(scratch),
                    console,
                    encoder=encoder,
                    weights=weights,
                    random_weights=random_weights,
                    device=device,
                )
            console.close()
            for table in measured:
                console.table(
                    table.title, list(table.columns), table.texts(), caption="\n".join(table.notes)
                )
            tables += measured
    except KeyboardInterrupt as e:
        kind = _Terminated if isinstance(e, Terminated) else _Stopped
        raise kind("stopped; the tables so far are above, no file was written") from None
    content = document(target, tables)
    console.result(machine_line(content["machine"]))
    if json_path:
        with locked(json_path):
            write_json(json_path, content)

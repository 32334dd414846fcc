"""``vst bench``: what this machine makes of it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from virchow_st.bench import TARGETS, run_target
from virchow_st.errors import ConfigError
from virchow_st.runtime.atomic import write_json
from virchow_st.runtime.interrupt import exit_code
from virchow_st.runtime.lock import locked
from virchow_st_cli.console import Console
from virchow_st_cli.options import with_console


class _Stopped(click.ClickException):
    """Ended by Ctrl-C."""

    exit_code = 130


@click.command(short_help="Measure speed on this machine.")
@click.argument("target", type=click.Choice([*TARGETS, "all"]), default="all")
@click.option(
    "--encoder", default="stain", show_default=True, help="encoder of extract and train, as there"
)
@click.option("--weights", default="", help="its local weights file, instead of the hub")
@click.option(
    "--random-weights",
    is_flag=True,
    help="Virchow2's architecture with random weights: its speed without access to it",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="also write this file")
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
    """Measure speed on this machine, beside the plain way to do the same and the hardware's limit.

    On data made for it in a temporary folder that is removed; TMPDIR says on which disk.
    """
    from virchow_st.bench.tables import Table, document, machine_line
    from virchow_st.runtime.devices import pick_device

    pick_device(device)  # an option that is wrong is said at once, not after minutes
    if json_path and not json_path.absolute().parent.is_dir():
        raise ConfigError(
            f"{json_path}: expected a file in a folder that is there; make the folder"
        )
    tables: list[Table] = []
    targets = TARGETS if target == "all" else (target,)
    try:
        for name in targets:
            # A folder each, so that no more is on the disk at a time than one of them needs.
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
        stopped = _Stopped("stopped; the figures so far are above, no file is left")
        stopped.exit_code = exit_code(e)
        raise stopped from None
    content = document(target, tables)
    console.result(machine_line(content["machine"]))
    if json_path:
        with locked(json_path):
            write_json(json_path, content)

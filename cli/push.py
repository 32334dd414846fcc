"""``vst push``."""

from __future__ import annotations

from pathlib import Path

import click

from virchow_st_cli.console import Console
from virchow_st_cli.options import with_console


@click.command(short_help="Share a run on the Hugging Face Hub, or as a folder.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("destination", metavar="ORG/NAME|./FOLDER")
@click.option(
    "--license",
    default="",
    help="licence of the shared model: apache-2.0, mit or another id of the Hub, or the https:// "
    "address of its text; default: that of the encoder",
)
@click.option("--public", is_flag=True, help="make the repository visible to everyone if it is new")
@click.option(
    "--keep-names", is_flag=True, help="keep the patients' names, not patient-1 and so on"
)
@with_console
def push(
    console: Console, run: Path, destination: str, license: str, public: bool, keep_names: bool
) -> None:
    """Upload RUN with a model card to ORG/NAME on the Hugging Face Hub, in one commit.

    A destination that begins with . or / is a folder, which is written without any network. Paths
    and names of patients are taken out; predictions stay the same. Runs on encoders whose licence
    forbids it, such as Virchow2, are refused.
    """
    from virchow_st.output.share import push_run, save_run

    if destination.startswith((".", "/")):
        save_run(run, Path(destination), license=license, keep_names=keep_names)
        console.result(destination)
        return
    done = push_run(
        run,
        destination,
        license=license,
        keep_names=keep_names,
        private=not public,
        progress=console,
    )
    console.result(done)

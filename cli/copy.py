"""``vst copy``."""

from __future__ import annotations

from pathlib import Path

import click

from virchow_st.cloud.place import Url
from virchow_st.errors import ConfigError
from virchow_st_cli.console import Console
from virchow_st_cli.options import PlaceOnDiskOrUrl, with_console


@click.command(short_help="Copy a store or a field from or to object storage, checked.")
@click.argument("source", type=PlaceOnDiskOrUrl())
@click.argument("target", type=PlaceOnDiskOrUrl())
@with_console
def copy(console: Console, source: Path, target: Path) -> int:
    """Copy a finished store, field or file from SOURCE to TARGET, one of which is a URL.

    To a URL, such as s3://bucket/P1.vst, every file is checked when it has arrived, and the one
    that makes it a result is sent last; the same command goes on with a copy that was stopped. From
    a URL, every file is compared with the list that was sent along.
    """
    from virchow_st.cloud.whole import get_whole, put_whole

    if isinstance(target, Url) and not isinstance(source, Url):
        if not source.exists():
            raise ConfigError(f"{source}: is not there; give a finished store, field or file")
        put_whole(source, target, console)
    elif isinstance(source, Url) and not isinstance(target, Url):
        get_whole(source, target, console)
    else:
        raise ConfigError(
            f"vst copy: expected a URL such as s3://bucket/{target.name or 'P1.vst'} and a path on "
            f"a disk; got {source} and {target}"
        )
    console.result(f"{target}: all files are there, with their bytes")
    return 0

"""Command-line options, generated from the fields of a configuration class."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from virchow_st.cloud.place import check_local, place
from virchow_st.errors import ConfigError
from virchow_st.settings import from_toml
from virchow_st_cli.console import Console

C = TypeVar("C")
Command = Callable[..., Any]


class PlaceOnDiskOrUrl(click.Path):
    """A path, or a URL in object storage, which becomes a `virchow_st.cloud.place.Url`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The place that was typed."""
        return place(str(super().convert(value, param, ctx)))


def config_options(cls: type, skip: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """Add an option ``--name`` for every field of a configuration except those in ``skip``."""

    def decorate(command: Command) -> Command:
        for f in reversed(fields(cls)):
            if f.name in skip:
                continue
            default = f.default if f.default is not MISSING else None
            choices = f.metadata.get("choices")
            is_list = isinstance(default, tuple)
            kind: Any = str if is_list else type(default)
            if choices and not is_list and kind is str:
                kind = click.Choice(choices)
            command = click.option(
                "--" + f.name.replace("_", "-"),
                f.name,
                type=kind,
                is_flag=kind is bool,
                default=",".join(map(str, default)) if isinstance(default, tuple) else default,
                show_default=default not in ("", ()),
                help=f.metadata["help"],
            )(command)
        return command

    return decorate


def build_config(cls: type[C], values: dict[str, Any], file: Path | None = None, **fixed: Any) -> C:
    """Build a configuration from option values; a TOML file supplies options that are not given.

    Args:
        cls: A dataclass of `virchow_st.config`.
        values: Option values by field name, as click parsed them.
        file: Value of ``--config``, written by an earlier run, or None.
        fixed: Fields that are not options.
    """
    context = click.get_current_context()
    by_name = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    chosen = {name: _parse(by_name[name], value) for name, value in values.items()}
    if file is None:
        return cls(**chosen, **fixed)
    base = from_toml(cls, file)  # type: ignore[type-var]
    given = {
        name: value
        for name, value in chosen.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    kept = {f: getattr(base, f) for f in by_name}
    return cls(**{**kept, **given, **{k: v for k, v in fixed.items() if v}})


def _parse(f: Any, value: Any) -> Any:
    if not isinstance(f.default, tuple):
        return value
    items = [item.strip() for item in str(value).split(",") if item.strip()]
    if f.default and isinstance(f.default[0], int):
        try:
            return tuple(int(item) for item in items)
        except ValueError:
            raise ConfigError(
                f"{f.name}: expected whole numbers separated by commas; got {value}"
            ) from None
    return tuple(items)


def with_console(command: Command) -> Command:
    """Add ``--quiet``, ``--verbose`` and ``--debug``, and pass a `Console` as first argument."""

    @click.option("--quiet", "-q", is_flag=True, help="print only warnings and the result")
    @click.option("--verbose", "-v", is_flag=True, help="also show log messages of libraries")
    @click.option("--debug", is_flag=True, help="show the traceback of an error")
    @functools.wraps(command)
    def wrapped(quiet: bool, verbose: bool, debug: bool, **kwargs: Any) -> Any:
        if verbose:
            import logging

            logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        check_local(kwargs)
        with Console(quiet=quiet) as console:
            return command(console, **kwargs)

    return wrapped

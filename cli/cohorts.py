"""What commands share that divide their work over workers."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click
from click.core import ParameterSource

from virchow_st.config import CohortConfig
from virchow_st.errors import ConfigError
from virchow_st_cli.options import build_config

_NAMES = {f.name for f in fields(CohortConfig)}
OF_A_LIST = "--manifest, whose slides are shared over workers"


def split_cohort(options: dict[str, Any]) -> tuple[CohortConfig, dict[str, Any]]:
    """The settings of the executor, and the other options.

    Args:
        options: values by field name, as click parsed them.
    """
    cohort = build_config(CohortConfig, {n: v for n, v in options.items() if n in _NAMES})
    return cohort, {n: v for n, v in options.items() if n not in _NAMES}


def refuse_cohort(expected: str) -> None:
    """Raise `ConfigError` if a setting of the executor was given where nothing is shared.

    Args:
        expected: the option that it goes with, and what is shared.
    """
    context = click.get_current_context()
    given = [
        name for name in _NAMES if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise ConfigError(f"--{min(given).replace('_', '-')}: expected {expected}")

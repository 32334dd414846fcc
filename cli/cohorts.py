"""What commands on a list of slides share."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click
from click.core import ParameterSource

from virchow_st.config import CohortConfig
from virchow_st.errors import ConfigError
from virchow_st_cli.options import build_config


def split_cohort(options: dict[str, Any], is_cohort: bool) -> tuple[CohortConfig, dict[str, Any]]:
    """The settings of the executor, and the other options.

    Args:
        options: values by field name, as click parsed them.
        is_cohort: whether a list of slides was given.

    Raises:
        ConfigError: one of the settings was given without a list of slides.
    """
    names = {f.name for f in fields(CohortConfig)}
    context = click.get_current_context()
    given = [
        name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if given and not is_cohort:
        option = min(given).replace("_", "-")
        raise ConfigError(f"--{option}: expected --manifest, whose slides are shared over workers")
    cohort = build_config(CohortConfig, {n: v for n, v in options.items() if n in names})
    return cohort, {n: v for n, v in options.items() if n not in names}

"""What settings are made of: a field's help and limits, checks on creation, and TOML."""

from __future__ import annotations

import math
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from virchow_st.errors import ConfigError
from virchow_st.schema import MismatchError, check, read_toml


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[Any, ...] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:
    """Declare a dataclass field with its help text and the values that it accepts.

    Args:
        default: Default value; its type is the type of the setting.
        help: Help text of the command-line option.
        choices: Accepted values, or None for any; for a tuple, accepted values of its items.
        at_least: Smallest accepted number, or None.
        at_most: Largest accepted number, or None.
    """
    limits = {"choices": choices, "at_least": at_least, "at_most": at_most}
    return field(default=default, metadata={"help": help, **limits})


class Checked:
    """Base class that checks every field of a dataclass against its declared limits."""

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]
            value, limits = getattr(self, f.name), f.metadata
            if value == () and limits.get("choices"):
                raise ConfigError(f"{f.name}: expected at least one of {_list(limits['choices'])}")
            for item in value if isinstance(value, tuple) else (value,):
                _check(f.name, item, limits)


def _check(name: str, value: Any, limits: Any) -> None:
    choices, low, high = limits.get("choices"), limits.get("at_least"), limits.get("at_most")
    if choices is not None and value not in choices:
        raise ConfigError(f"{name}: expected one of {_list(choices)}; got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}: expected a finite number; got {value}")
    if low is not None and value < low:
        raise ConfigError(f"{name}: expected at least {low}; got {value}")
    if high is not None and value > high:
        raise ConfigError(f"{name}: expected at most {high}; got {value}")


def _list(choices: tuple[Any, ...]) -> str:
    return ", ".join(map(str, choices))


C = TypeVar("C", bound=Checked)


def to_toml(config: Checked) -> str:
    """Convert a configuration to TOML text that contains every field."""
    import tomli_w

    values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}  # type: ignore[call-overload]
    return tomli_w.dumps(values)


def from_toml(cls: type[C], path: Path) -> C:
    """Read a configuration that `to_toml` wrote.

    Args:
        cls: Class of the configuration, such as `TrainConfig`.
        path: TOML file.

    Raises:
        ConfigError: The file cannot be read, is not TOML, or has unknown keys or bad values.
    """
    values = read_toml(path)
    known = get_type_hints(cls)
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(f"{path}: unknown keys {', '.join(unknown)}; known: {', '.join(known)}")
    for name, value in values.items():
        try:
            check(value, known[name], name)
        except MismatchError as e:
            raise ConfigError(f"{path}: {e}") from None
        if isinstance(value, list):
            values[name] = tuple(value)
        elif known[name] is float:
            values[name] = float(value)
    return cls(**values)

"""Encoders of other packages, found by the entry point group ``virchow_st.encoders``.

An entry point's name is what ``--encoder`` takes. Its object is a function
``load(weights: str, device: str) -> Encoder`` (docs/encoders.md).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from virchow_st.errors import ConfigError
from virchow_st.models.encoders.base import Encoder

GROUP = "virchow_st.encoders"
_ATTRIBUTES = ("dim", "grid", "image_px", "weights_hash")
_GRID = 16  # of a whole patch; `Quartered` makes the finer one


def find_plugin(name: str) -> EntryPoint | None:
    """The entry point of a name; None if no installed package has one.

    Raises:
        ConfigError: Two packages have one.
    """
    found = list(entry_points(group=GROUP, name=name))
    if len({entry.value for entry in found}) > 1:
        packages = sorted(_package(entry) for entry in found)
        raise ConfigError(
            f"encoder {name}: expected one package that adds it; found {', '.join(packages)}; "
            "uninstall all but one"
        )
    return found[0] if found else None


def load_plugin(entry: EntryPoint, weights: str, device: str) -> Encoder:
    """Load the encoder of an entry point.

    Raises:
        ConfigError: The package cannot be imported, or does not give a complete `Encoder` of the
            entry point's name with 16 × 16 tokens.
    """
    whose = f"encoder {entry.name}, of {_package(entry)}"
    try:
        load: Callable[..., Any] = entry.load()
    except (ImportError, AttributeError) as e:
        raise ConfigError(f"{whose}: {entry.value} cannot be imported ({e})") from e
    encoder = load(weights=weights, device=device)
    if not isinstance(encoder, Encoder):
        raise ConfigError(
            f"{whose}: expected {entry.value} to return a virchow_st.Encoder; got "
            f"{type(encoder).__name__}"
        )
    missing = [name for name in _ATTRIBUTES if not hasattr(encoder, name)]
    if missing:
        raise ConfigError(f"{whose}: the encoder lacks the attribute {missing[0]}")
    if encoder.name != entry.name or encoder.grid != _GRID:
        raise ConfigError(
            f"{whose}: expected an encoder named {entry.name} with {_GRID} × {_GRID} tokens; got "
            f"{encoder.name} with {encoder.grid} × {encoder.grid}"
        )
    return encoder


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unknown package"

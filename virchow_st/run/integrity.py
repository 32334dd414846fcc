"""Checks that the files of a run are those that it was trained with.

The predictions of a run depend on its configuration, panel, split and weights together. Their
hashes are stored in every checkpoint's ``state.json``, which also has a hash of itself. Runs of
older versions have no hashes and are read without this check.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from virchow_st.errors import ConfigError, to_read
from virchow_st.schema import read_toml

CONFIG, PANEL, SPLIT = "config.toml", "panel.tsv", "split.json"
FILES = (CONFIG, PANEL, SPLIT)
GENES = "genes.tsv"
"""All genes that a run predicts, if they are more than its panel."""
# Where stores lie and where a run is computed may change: the split names the stores' records.
_PLACES = ("stores", "device", "compile")


def file_hashes(run: Path) -> dict[str, str]:
    """The hashes of a run's files, by name; `ConfigError` for one that cannot be read."""
    names = [*FILES, GENES] if (run / GENES).exists() else FILES
    return {name: _hash(run / name) for name in names}


def _hash(path: Path) -> str:
    if path.name == CONFIG:
        settings = {k: v for k, v in read_toml(path).items() if k not in _PLACES}
        return hash_of(settings)
    return hash_file(path)


def hash_of(content: Mapping[str, Any]) -> str:
    """XXH64 of a JSON value, independent of the order of its keys; 16 hex digits."""
    return xxhash.xxh64(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """XXH64 of a file's bytes; 16 hex digits."""
    digest = xxhash.xxh64()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    except OSError as e:
        raise ConfigError(
            f"{path}: cannot be read ({e.strerror}); {to_read(e, 'train again')}"
        ) from None
    return digest.hexdigest()


def check_files(run: Path, state: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless the run's files are those that its checkpoint was trained with.

    Args:
        run: the run directory.
        state: of one of its checkpoints.
    """
    for name, expected in state.get("files", {}).items():
        if (found := _hash(run / name)) != expected:
            raise ConfigError(
                f"{run / name}: is not the file that the run was trained with (hash {found}, "
                f"expected {expected}); put the run's own file back, or train again"
            )

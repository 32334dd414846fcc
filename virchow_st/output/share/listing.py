"""``config.json`` of a shared run: its kind, and every file with its size and SHA-256.

A folder is accepted as a shared run only if all listed files are present and unchanged, and it
holds no other file of a run. An incomplete copy is therefore never taken for a complete one. The
hashes find damage; they cannot find a change by someone who also changes the list. The Hub counts a
download of a model by this file's name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from virchow_st.errors import ConfigError
from virchow_st.run.appearance import APPEARANCE
from virchow_st.run.integrity import CONFIG, GENES, PANEL, SPLIT
from virchow_st.run.lock import CHECKPOINTS
from virchow_st.run.results import METRICS, PER_GENE_FILE
from virchow_st.run.state import STATE, TENSORS
from virchow_st.runtime.atomic import settled
from virchow_st.schema import Count, Name, read_json

FORMAT = "virchow_st.share/1"
LISTING, CARD = "config.json", "README.md"
BEST = f"{CHECKPOINTS}/best"
NEEDED = (CONFIG, PANEL, SPLIT, f"{BEST}/{STATE}", f"{BEST}/{TENSORS}")
FILES = (*NEEDED, GENES, APPEARANCE, METRICS, PER_GENE_FILE)
"""Every file that a shared run may list; paths within the folder."""
_REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_REMEDY = "share the run again, or download it again"


class _File(TypedDict):
    bytes: Count
    sha256: Name


class _Encoder(TypedDict):
    name: Name
    weights: str
    licence: str


class _Listing(TypedDict):
    format: Literal["virchow_st.share/1"]
    version: Name
    decoder: Name
    loss: Name
    n_genes: Count
    encoder: _Encoder
    files: dict[str, _File]


def is_repo(text: str) -> bool:
    """Whether a text has the form of a repository of the Hub, ``ORG/NAME``, and not of a path.

    Example:
        >>> is_repo("org/crc-50-genes"), is_repo("./org/crc"), is_repo("crc"), is_repo("/a/b")
        (True, False, False, False)
    """
    return _REPO.fullmatch(text) is not None


def write_listing(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the list of the files of `FILES` that are in the folder.

    Args:
        folder: with everything but the list and the card.
        about: the other entries of the list.
    """
    files = {name: _described(folder / name) for name in FILES if (folder / name).is_file()}
    content = {"format": FORMAT, **about, "files": files}
    (folder / LISTING).write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _described(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def check_listed(folder: Path) -> None:
    """Raise `ConfigError` unless the folder holds a complete shared run, as it was listed."""
    missing = f"share the run with `vst push`; a folder of `vst train` has no {LISTING}"
    listed = read_json(folder / LISTING, _Listing, _REMEDY, missing=missing)["files"]
    for name in NEEDED:
        if name not in listed:
            raise ConfigError(f"{folder / LISTING}: expected {name} in the list; {_REMEDY}")
    for name in FILES:
        path = folder / name
        if name not in listed:
            if path.exists():
                raise ConfigError(
                    f"{path}: expected no such file, since {LISTING} does not list it; {_REMEDY}"
                )
        elif not path.is_file():
            raise ConfigError(f"{path}: is listed in {LISTING} and is not there; {_REMEDY}")
        elif (found := _described(path)) != listed[name]:
            raise ConfigError(
                f"{path}: is not the file that was shared (SHA-256 {found['sha256'][:16]}…, "
                f"expected {listed[name]['sha256'][:16]}…); {_REMEDY}"
            )


def best_of(run: Path) -> Path:
    """The folder of a run's best checkpoint, also if its writer was killed."""
    return settled(run / BEST)

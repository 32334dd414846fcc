"""The manifest of a store, whose presence makes a folder a finished store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from virchow_st.errors import StoreError
from virchow_st.runtime.lock import holder
from virchow_st.store.format import (
    FORMAT,
    FORMAT_WIDE,
    MAX_DIM,
    MAX_GENES,
    MAX_NARROW_GENES,
    MAX_PATCHES,
)
from virchow_st.store.tokens import TOKEN_DTYPES
from virchow_st.types import PATCH_BINS

MANIFEST = "store.json"
JOB = "job.json"
DATA = "data.mdb"
LOCK = "writer.lock"

_REQUIRED = {
    "patient": str,
    "slide": str,
    "n_patches": int,
    "grid": int,
    "dim": int,
    "token_dtype": str,
    "token_um": int,
    "token_layout": list,
    "genes": dict,
    "homography": list,
    "mpp": float,
    "tissue_bins": dict,
    "encoder": dict,
    "job": dict,
    "software": dict,
    "records_xxh64": str,
}
_GENE_COLUMNS = ("id", "symbol", "total")
_ENCODER = ("name", "weights", "licence")
_TISSUE_BINS = ("slide", "patches")
_JOB = ("options", "inputs")
_REGISTRATION = (
    "shift_row_um",
    "shift_col_um",
    "uncertainty_um",
    "correlation",
    "correlation_at_zero",
    "strength",
    "searched_um",
)


def is_finished(store: Path) -> bool:
    """Whether the folder has a manifest, which extraction writes last."""
    return (store / MANIFEST).is_file()


def read_manifest(store: Path) -> dict[str, Any]:
    """Manifest of a finished store; raises `StoreError` that names the remedy for anything else."""
    try:
        if not store.exists():
            raise StoreError(
                f"{store}: no such store; write it with `vst extract --store {store} …`"
            )
        if not is_finished(store):
            raise _unfinished(store)
        manifest = json.loads((store / MANIFEST).read_text("utf-8"))
    except OSError as e:
        raise StoreError(f"{store}: cannot be read ({e.strerror}); look at its rights") from None
    except (ValueError, RecursionError) as e:  # RecursionError: brackets nested too deeply
        raise StoreError(
            f"{store / MANIFEST}: cannot be read as JSON ({e}); copy the store or extract it again"
        ) from None
    actual = manifest.get("format") if isinstance(manifest, dict) else None
    if actual not in (FORMAT, FORMAT_WIDE):
        actual = actual if isinstance(actual, str | None) else type(actual).__name__
        raise StoreError(
            f"{store}: expected format {FORMAT} or {FORMAT_WIDE}, got {actual!r}; read it with "
            f"the version of virchow_st that wrote it, or extract the slide again"
        )
    for name, kind in _REQUIRED.items():
        if type(manifest.get(name)) is not kind:
            raise StoreError(
                f"{store / MANIFEST}: {name} is missing or not of type {kind.__name__}"
            )
    columns = [manifest["genes"].get(name) for name in _GENE_COLUMNS]
    if not all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
        raise StoreError(
            f"{store / MANIFEST}: genes: expected id, symbol and total, lists of equal length"
        )
    if (fault := _beyond_limits(manifest) or _wrong_lists(manifest)) is not None:
        raise StoreError(f"{store / MANIFEST}: {fault}")
    return dict(manifest)


def _beyond_limits(manifest: dict[str, Any]) -> str | None:
    """The first number that the format does not allow; records are read by these."""
    grid, dim, n_genes = manifest["grid"], manifest["dim"], len(manifest["genes"]["id"])
    if grid < 1 or PATCH_BINS % grid:
        return f"grid: expected a divisor of {PATCH_BINS}; got {grid}"
    if not 1 <= dim <= MAX_DIM:
        return f"dim: expected 1 to {MAX_DIM}; got {dim}"
    if not 0 <= manifest["n_patches"] <= MAX_PATCHES:
        return f"n_patches: expected 0 to {MAX_PATCHES}; got {manifest['n_patches']}"
    most = MAX_GENES if manifest["format"] == FORMAT_WIDE else MAX_NARROW_GENES
    if n_genes > most:
        return f"genes: expected at most {most} in {manifest['format']}; got {n_genes}"
    if manifest["token_dtype"] not in TOKEN_DTYPES:
        return f"token_dtype: expected {' or '.join(TOKEN_DTYPES)}; got {manifest['token_dtype']!r}"
    return None


def _wrong_lists(manifest: dict[str, Any]) -> str | None:
    """The first list or object whose content is not what it has to be."""
    ids, symbols, totals = (manifest["genes"][name] for name in _GENE_COLUMNS)
    if not all(isinstance(text, str) for text in [*ids, *symbols]) or len(set(ids)) != len(ids):
        return "genes: expected strings, and every id once"
    if not all(type(total) is int and 0 <= total < 1 << 63 for total in totals):
        return f"genes: expected totals of 0 to {(1 << 63) - 1}"
    for block in manifest["token_layout"]:
        if not (isinstance(block, list) and [type(number) for number in block] == [int, int]):
            return "token_layout: expected pairs of whole numbers"
        start, side = block
        if start < 0 or side < 1 or start + side**2 > manifest["dim"]:
            return f"token_layout: expected blocks within {manifest['dim']} channels; got {block}"
    if not all(isinstance(manifest["encoder"].get(name), str) for name in _ENCODER):
        return f"encoder: expected the strings {', '.join(_ENCODER)}"
    if not all(type(manifest["tissue_bins"].get(name)) is int for name in _TISSUE_BINS):
        return f"tissue_bins: expected the whole numbers {', '.join(_TISSUE_BINS)}"
    if not all(isinstance(manifest["job"].get(name), dict) for name in _JOB):
        return f"job: expected the objects {', '.join(_JOB)}"
    if "registration" in manifest:
        found = manifest["registration"]
        if not (
            isinstance(found, dict)
            and isinstance(found.get("verdict"), str)
            and all(type(found.get(name)) is float for name in _REGISTRATION)
        ):
            return f"registration: expected a verdict and the numbers {', '.join(_REGISTRATION)}"
    return None


def _unfinished(store: Path) -> StoreError:
    if not (store / JOB).is_file():
        return StoreError(
            f"{store}: not a store (no {MANIFEST}); give a folder `vst extract` wrote"
        )
    remedy = "run its `vst extract` again, it will resume"
    if (writer := holder(store / LOCK)) is not None:
        return StoreError(
            f"{store}: unfinished, being written by {writer}; wait for that to end, or {remedy}"
        )
    return StoreError(f"{store}: unfinished; {remedy}")

"""The manifest of a store, and the rule that says whether a folder is a finished store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from virchow_st.errors import StoreError
from virchow_st.store.format import FORMAT

MANIFEST = "store.json"
JOB = "job.json"
DATA = "data.mdb"

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
    "encoder": dict,
    "records_xxh64": str,
}
_GENE_COLUMNS = ("id", "symbol", "total")


def is_finished(store: Path) -> bool:
    """Whether the folder has a manifest, the last thing that extraction writes."""
    return (store / MANIFEST).is_file()


def read_manifest(store: Path) -> dict[str, Any]:
    """Manifest of a finished store; raises `StoreError` that names the remedy for anything else."""
    if not store.exists():
        raise StoreError(f"{store}: no such store; write it with `vst extract --store {store} …`")
    if not is_finished(store):
        if (store / JOB).is_file():
            raise StoreError(f"{store}: unfinished; run its `vst extract` again, it will resume")
        raise StoreError(f"{store}: not a store (no {MANIFEST}); give a folder `vst extract` wrote")
    try:
        manifest = json.loads((store / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise StoreError(f"{store / MANIFEST}: cannot be read as JSON ({e})") from None
    came = manifest.get("format") if isinstance(manifest, dict) else None
    if came != FORMAT:
        raise StoreError(
            f"{store}: expected format {FORMAT}, got {came!r}; extract the slide again"
        )
    for name, kind in _REQUIRED.items():
        if not isinstance(manifest.get(name), kind):
            raise StoreError(
                f"{store / MANIFEST}: {name} is missing or not of type {kind.__name__}"
            )
    columns = [manifest["genes"].get(name) for name in _GENE_COLUMNS]
    if not all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
        raise StoreError(
            f"{store / MANIFEST}: genes: expected id, symbol and total, lists of equal length"
        )
    return dict(manifest)

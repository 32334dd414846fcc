"""Writes a store anew as if some of its genes had never been measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from virchow_st.store.reader import Patch, Store, open_store
from virchow_st.store.writer import PatchRecord, StoreWriter


def without_genes(
    store: Store,
    path: Path,
    lacking: Collection[int],
    symbols: Mapping[str, str] | None = None,
    ids: Mapping[str, str] | None = None,
) -> Store:
    """Copy a store without the genes ``lacking`` (indices), and with other symbols or ids."""
    kept = np.array([g for g in range(len(store.genes)) if g not in set(lacking)], np.int64)
    manifest = dict(store.manifest)
    genes = {
        "id": [(ids or {}).get(store.genes.ids[g], store.genes.ids[g]) for g in kept],
        "symbol": [
            (symbols or {}).get(store.genes.symbols[g], store.genes.symbols[g]) for g in kept
        ],
        "total": store.genes.totals[kept].tolist(),
    }
    written = ("format", "version", "n_patches", "token_dtype", "records_xxh64", "job", "checksum")
    for name in written:
        manifest.pop(name, None)
    with StoreWriter(path, store.manifest["job"], store.token_dtype, len(kept)) as writer:
        writer.append([_record(patch, kept) for patch in store])
        writer.finish(manifest | {"genes": genes})
    return open_store(path)


def _record(patch: Patch, kept: np.ndarray) -> PatchRecord:
    counts = patch.panel_counts(kept)
    return PatchRecord(
        info=patch.info,
        tissue_mask=patch.tissue_mask,
        validity_mask=patch.validity_mask,
        gene=counts.gene.astype(np.int64),
        position=counts.position.astype(np.int64),
        count=counts.count,
        image=patch.image,
        class_token=patch.cls,
        tokens=patch.tokens,
    )

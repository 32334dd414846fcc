"""Summary numbers of a store, as `vst inspect` shows them."""

from __future__ import annotations

from typing import Any

import numpy as np

from virchow_st.store.format import Kind
from virchow_st.store.reader import Store

_TOP_GENES = 50
_GROUPS = {
    "tokens": (Kind.TOKENS, Kind.CLASS_TOKEN),
    "counts": (Kind.COUNTS,),
    "images": (Kind.IMAGE,),
    "masks": (Kind.TISSUE_MASK, Kind.VALIDITY_MASK),
    "patch_table": (Kind.PATCH,),
}


def summarise(store: Store) -> dict[str, Any]:
    """Summarise a store: its manifest without the genes, and numbers over all patches.

    Returns:
        All entries of the manifest except ``genes``, and

        - ``n_genes``, ``total_umi``: number of genes, and UMIs over all patches;
        - ``tissue_covered``: share of the slide's tissue bins that lie in patches;
        - ``nonzero``, ``nonzero_top50``: share of (gene, tissue bin) pairs with a count, over all
          genes and over the 50 with the most UMIs;
        - ``n_nonzero``, ``bytes_per_nonzero``: number of non-zero counts, and bytes of the counts
          records per non-zero count;
        - ``record_bytes``: bytes of the values including checksums, per kind of record: tokens
          (with class tokens), counts, images, masks, patch_table;
        - ``bytes``: size of the whole folder on disk.

    Raises:
        StoreError: a record is damaged.
    """
    totals = store.genes.totals
    top = np.argsort(-totals, kind="stable")[:_TOP_GENES]
    n_nonzero = np.zeros(len(totals), np.int64)  # of each gene
    value_bytes = dict.fromkeys(Kind, 0)
    n_tissue = 0
    for patch in store:
        counts = patch.sparse_counts
        n_nonzero[counts.genes] += np.diff(counts.indptr)
        n_tissue += int(patch.tissue_mask.sum())
        for kind in Kind:
            value_bytes[kind] += store.value_bytes(patch.index, kind)
    tissue = store.manifest["tissue_bins"]
    return {
        **{name: value for name, value in store.manifest.items() if name != "genes"},
        "n_genes": len(totals),
        "total_umi": int(totals.sum()),
        "tissue_covered": tissue["patches"] / max(tissue["slide"], 1),
        "nonzero": int(n_nonzero.sum()) / max(n_tissue * len(totals), 1),
        "nonzero_top50": int(n_nonzero[top].sum()) / max(n_tissue * len(top), 1),
        "n_nonzero": int(n_nonzero.sum()),
        "bytes_per_nonzero": value_bytes[Kind.COUNTS] / max(int(n_nonzero.sum()), 1),
        "record_bytes": {
            name: sum(value_bytes[kind] for kind in kinds) for name, kinds in _GROUPS.items()
        },
        "bytes": sum(file.stat().st_size for file in store.path.iterdir()),
    }

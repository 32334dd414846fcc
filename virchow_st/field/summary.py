"""Summary numbers of a field, as `vst inspect` shows them."""

from __future__ import annotations

from typing import Any

import numpy as np

from virchow_st.field.bins import CELL_UM
from virchow_st.field.read import Field
from virchow_st.kernels.pooling import pool_mask
from virchow_st.types import BIN_UM, CELL_BINS


def summarise_field(field: Field) -> dict[str, Any]:
    """What a field holds, and numbers computed from its maps at 8 µm.

    Returns:
        - ``n_genes``, ``n_factors``; ``held``: ``"factors"``, or ``"rates"`` where genes are held
          directly;
        - ``bins``: rows and columns of 2 µm bins; ``corner_um``;
        - ``covered_mm2``, ``tissue_mm2``: the area with values in 8 µm bins, and that of tissue;
        - ``umi``: expected UMIs of all genes over the covered area, and ``umi_per_bin``, of a 2 µm
          bin on average;
        - ``factors``: of each its ``name``, ``leading_genes`` and ``share`` of the UMIs;
        - ``bytes``: the whole folder on disk;
        - ``provenance``: as the writer recorded it, without its list of genes.

    Raises:
        FieldError: the field is damaged.
    """
    cells = pool_mask(field.covered, CELL_BINS)
    sums = field.factor_sums(cells.astype(np.uint8)).sum(axis=0)
    umi_of_factor = sums * field.loadings.sum(axis=0, dtype=np.float64)
    umi = float(umi_of_factor.sum())
    n_covered = int(cells.sum()) * CELL_BINS**2
    files = (file for file in field.path.rglob("*") if file.is_file())
    return {
        "n_genes": len(field.genes),
        "n_factors": len(field.factor_names),
        "held": "rates" if field.is_direct else "factors",
        "bins": list(field.shape),
        "corner_um": list(field.corner_um),
        "covered_mm2": int(cells.sum()) * (CELL_UM / 1000) ** 2,
        "tissue_mm2": int(field.tissue_mask.sum()) * (BIN_UM / 1000) ** 2,
        "umi": umi,
        "umi_per_bin": umi / max(n_covered, 1),
        "factors": [
            {"name": name, "leading_genes": genes, "share": share / umi if umi else 0.0}
            for name, genes, share in zip(
                field.factor_names, field.leading_genes, umi_of_factor.tolist(), strict=True
            )
        ],
        "bytes": sum(file.stat().st_size for file in files),
        "provenance": {name: of for name, of in field.provenance.items() if name != "genes"},
    }

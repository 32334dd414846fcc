"""Total-UMI baseline: rates proportional to the total count of a bin.

It is an oracle, not a model, because it reads the counts of the test slide.
"""

from __future__ import annotations

import numpy as np

from virchow_st.store.panel_reads import PanelCounts
from virchow_st.store.reader import Patch
from virchow_st.types import PATCH_POSITIONS, BoolArray, Float32Array, Float64Array

_PSEUDO_UMI = 1.0  # gives a bin without UMIs of other genes a low rate instead of 0


def total_umi(patch: Patch) -> Float64Array:
    """UMIs of all genes of the store in each bin of a patch, (128·128,) float64, row-major."""
    stored = patch.sparse_counts
    umis = np.bincount(stored.positions, stored.counts, PATCH_POSITIONS)
    return umis.astype(np.float64)


class DepthFit:
    """Ratio of each gene's UMIs to the UMIs of all other genes, over the training tissue."""

    def __init__(self, n_genes: int) -> None:
        self._gene: Float64Array = np.zeros(n_genes)
        self._others: Float64Array = np.zeros(n_genes)

    def add(self, patch: Patch, counts: PanelCounts, tissue_mask: BoolArray) -> None:
        """Add a patch with its panel counts at 2 µm and its tissue mask (128, 128)."""
        tissue = tissue_mask.ravel()
        inside = tissue[counts.position]
        of_gene = np.bincount(counts.gene[inside], counts.count[inside], counts.n_genes)
        total = total_umi(patch)[tissue].sum()
        self._gene += of_gene
        self._others += total - of_gene + _PSEUDO_UMI * tissue.sum()

    def solve(self) -> Float64Array:
        """(G,) UMIs of the gene per UMI of all other genes, with one pseudo-UMI added per bin."""
        return self._gene / np.maximum(self._others, 1.0)


def depth_rates(odds: Float64Array, total: Float64Array, counts: Float32Array) -> Float32Array:
    """Rate of each gene: its odds times the bin's UMIs of all other genes.

    The gene's own UMIs are excluded, so that no count predicts itself.

    Args:
        odds: (G,) from `DepthFit.solve`.
        total: (128, 128) `total_umi` of a patch of the test slide.
        counts: (G, 128, 128) its panel counts, UMIs.

    Returns:
        (G, 128, 128) float32, UMIs per 2 µm bin.
    """
    others = total.astype(np.float32) - counts + np.float32(_PSEUDO_UMI)
    return others * odds.astype(np.float32)[:, None, None]

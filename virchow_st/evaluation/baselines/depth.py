"""Total UMIs: how far the depth of a bin explains a gene. An oracle, for it reads test counts."""

from __future__ import annotations

import numpy as np

from virchow_st.store.panel_reads import PanelCounts
from virchow_st.store.reader import Patch
from virchow_st.types import PATCH_BINS, PATCH_POSITIONS, BoolArray, Float32Array, Float64Array

_PSEUDO_UMI = 1.0  # a bin without other UMIs has a low rate, not the impossible rate of 0


def total_umi(patch: Patch) -> Float64Array:
    """UMIs of all the store's genes in each bin of a patch, (128·128,) in row-major order."""
    stored = patch.sparse_counts
    umis = np.bincount(stored.positions, stored.counts, PATCH_POSITIONS)
    return umis.astype(np.float64)


class DepthFit:
    """UMIs of each gene for one UMI of all other genes, over the training patches' tissue."""

    def __init__(self, n_genes: int) -> None:
        self._gene: Float64Array = np.zeros(n_genes)
        self._others: Float64Array = np.zeros(n_genes)

    def add(self, patch: Patch, counts: PanelCounts, tissue_mask: BoolArray) -> None:
        """Add a patch with its panel counts at 2 µm."""
        tissue = tissue_mask.ravel()
        inside = tissue[counts.position]
        of_gene = np.bincount(counts.gene[inside], counts.count[inside], counts.n_genes)
        total = total_umi(patch)[tissue].sum()
        self._gene += of_gene
        self._others += total - of_gene + _PSEUDO_UMI * tissue.sum()

    def solve(self) -> Float64Array:
        """(G,) UMIs of the gene for each UMI of the others, a pseudo-UMI a bin among these."""
        return self._gene / np.maximum(self._others, 1.0)


def depth_rates(odds: Float64Array, patch: Patch, counts: Float32Array) -> Float32Array:
    """UMIs per 2 µm bin (G, 128, 128): each gene's odds times the bin's UMIs of all other genes.

    Without the gene itself, because no count may predict itself.

    Args:
        odds: (G,) of `DepthFit`.
        patch: a patch of the test slide.
        counts: (G, 128, 128) its panel counts.
    """
    total = total_umi(patch).astype(np.float32).reshape(PATCH_BINS, PATCH_BINS)
    others = total - counts + np.float32(_PSEUDO_UMI)
    return others * odds.astype(np.float32)[:, None, None]

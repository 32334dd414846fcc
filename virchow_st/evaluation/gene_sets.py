"""Scores of gene sets of a run with factors: a set is scored as one gene, the sum of its genes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from virchow_st.evaluation.all_genes import AllGenes
from virchow_st.run.all_genes import FDR, AllGenesTable
from virchow_st.run.gene_sets import genes_of_sets, read_gmt, without_genes, write_gene_sets
from virchow_st.run.panel import Panel
from virchow_st.runtime.progress import Progress
from virchow_st.store.panel_reads import PanelCounts
from virchow_st.types import PATCH_POSITIONS, BoolArray, Float32Array, Float64Array


class GeneSetScores:
    """Accumulates the scores of gene sets at every scale.

    The rate of a set is the sum of its genes' rates, so its loadings are the sums of their loadings
    and everything that scores a gene scores a set. A set is far less sparse than its genes: this is
    how a pathway can be scored at 2 µm whose genes are too rare to be scored by themselves.

    Args:
        path: GMT file.
        genes: The G genes that are scored; others of a set are left out.
        loadings: (G, K) share of each gene in a factor's UMIs.
        train_rate: (G,) mean UMIs per 2 µm tissue bin of the training patients.
        progress: Receives a warning about sets that have no gene among those of the run.

    Raises:
        ConfigError: The file is not a GMT file, or no set has a gene among those of the run.
    """

    def __init__(
        self,
        path: Path,
        genes: Panel,
        loadings: Float32Array,
        train_rate: Float64Array,
        progress: Progress,
    ) -> None:
        sets = read_gmt(path)
        found = genes_of_sets(sets, genes)
        if warning := without_genes(sets, found, path):
            progress.warn(warning)
        self._sets = [one for one, places in zip(sets, found, strict=True) if places]
        self._found = [places for places in found if places]
        start = np.cumsum([0, *map(len, self._found)])
        self._members = sparse.csr_array(
            (np.ones(start[-1], np.int64), np.concatenate(self._found), start),
            shape=(len(self._sets), len(genes)),
        )
        names = tuple(one.name for one in self._sets)
        of_sets = (self._members @ loadings).astype(np.float32)
        self._scores = AllGenes(Panel(names, names), of_sets, self._members @ train_rate)

    def add(
        self,
        counts: PanelCounts,
        tissue_mask: BoolArray,
        factors: Float32Array,
        exposure: Float32Array | None = None,
    ) -> None:
        """Add the prediction for one patch; see `AllGenes.add`."""
        self._scores.add(self._summed(counts), tissue_mask, factors, exposure)

    def finish_slide(self) -> None:
        """See `AllGenes.finish_slide`."""
        self._scores.finish_slide()

    def _summed(self, counts: PanelCounts) -> PanelCounts:
        """The counts of every set: sums over its genes, sorted by (set, position)."""
        of_genes = sparse.coo_array(
            (counts.count.astype(np.int64), (counts.gene, counts.position)),
            shape=(counts.n_genes, PATCH_POSITIONS),
        )
        of_sets = (self._members @ of_genes.tocsr()).tocsr()
        of_sets.sort_indices()
        which = np.repeat(np.arange(len(self._sets)), np.diff(of_sets.indptr))
        position, count = of_sets.indices.astype(np.uint16), of_sets.data.astype(np.uint32)
        return PanelCounts(which, position, count, counts.bin_um, len(self._sets))

    def write(self, folder: Path, of_genes: AllGenesTable) -> dict[str, Any]:
        """Write ``gene_sets.csv``; returns ``gene_sets`` of ``metrics.json``.

        Args:
            folder: To write to.
            of_genes: Scores of all genes, with which the sets are tested against the null.
        """
        table = self._scores.table(beside=of_genes)
        write_gene_sets(folder, self._sets, self._found, table)
        q = {str(scale): values for scale, values in table.q_value.items()}
        return {
            "n_sets": len(self._sets),
            "fdr": FDR,
            "n_tested": {scale: int(np.isfinite(v).sum()) for scale, v in q.items()},
            "n_predicted": {scale: int((v <= FDR).sum()) for scale, v in q.items()},
        }

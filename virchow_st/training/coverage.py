"""Which genes were measured in each row of counts, where rows come from different stores.

Letters: n rows, G genes, K factors, S stores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from virchow_st.types import BoolArray, Float64Array, Int64Array


@dataclass(frozen=True)
class Coverage:
    """Genes that the store of each row measured; a count of another gene is unknown, not 0.

    Attributes:
        store: (n,) int64, index of each row's store.
        measured: (S, G) bool.

    Example:
        >>> coverage = Coverage(np.array([0, 1, 1]), np.array([[True, True], [True, False]]))
        >>> coverage.of_genes(np.array([[1.0], [2.0]])).tolist()  # sums over measured genes
        [[3.0], [1.0], [1.0]]
        >>> coverage.of_rows(np.array([[5.0], [7.0], [9.0]])).tolist()  # over rows that have it
        [[21.0], [5.0]]
    """

    store: Int64Array
    measured: BoolArray

    def of_genes(self, values: Float64Array) -> Float64Array:
        """For each row, the sum of values (G, K) over the genes that were measured, (n, K)."""
        return np.asarray((self.measured.astype(np.float64) @ values)[self.store])

    def of_rows(self, values: Float64Array) -> Float64Array:
        """For each gene, the sum of values (n, K) over the rows where it was measured, (G, K)."""
        stores = range(len(self.measured))
        sums = np.stack([values[self.store == store].sum(0) for store in stores])
        return np.asarray(self.measured.T.astype(np.float64) @ sums)

    def taken(self, chosen: Int64Array) -> Coverage:
        """That of some of the rows."""
        return Coverage(self.store[chosen], self.measured)

    @property
    def everywhere(self) -> BoolArray:
        """(G,) bool, genes that were measured in all rows."""
        return np.asarray(self.measured[np.unique(self.store)].all(axis=0))

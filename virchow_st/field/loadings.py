"""Loadings of a field: how much of each factor a gene has, and what the factors are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from virchow_st.run.leading_genes import leading_genes
from virchow_st.run.panel import Panel
from virchow_st.types import Float32Array, Int64Array

N_LEADING = 10
"""Leading genes that a field lists per factor."""
_IN_A_NAME = 3


@dataclass(frozen=True, eq=False)
class Loadings:
    """G genes and their loadings on K factors: the rate of gene g is ``Σ_k W[g, k] · h[k]``.

    Attributes:
        genes: ids and symbols of the G genes.
        values: (G, K) float32, finite and ≥ 0; None where genes are held directly, K = G and W = 1.

    Raises:
        ValueError: the values have another shape, or one is negative or not finite.

    Example:
        >>> genes = Panel(("E1", "E2", "E3"), ("EPCAM", "PIGR", "ACTB"))
        >>> W = np.array([[2, 0], [0.5, 4], [9, 9]], np.float32)
        >>> Loadings(genes, W).factor_names
        ('1: EPCAM, ACTB, PIGR', '2: PIGR, ACTB')
        >>> Loadings(genes).factor_names
        ('EPCAM', 'PIGR', 'ACTB')
    """

    genes: Panel
    values: Float32Array | None = None
    labels: list[str] = field(init=False, repr=False)
    """What each gene is called, see `virchow_st.run.panel.gene_labels`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", self.genes.labels)
        if self.values is None:
            return
        shape = self.values.shape
        if len(shape) != 2 or shape[0] != len(self.genes) or not shape[1]:
            raise ValueError(
                f"loadings: expected ({len(self.genes)} genes, factors); got shape {shape}"
            )
        if not (np.isfinite(self.values).all() and (self.values >= 0).all()):
            raise ValueError("loadings: expected finite values of at least 0")

    @property
    def is_direct(self) -> bool:
        """Whether the maps are the genes' rates themselves."""
        return self.values is None

    @property
    def n_factors(self) -> int:
        """Number of factors, K."""
        return len(self.genes) if self.values is None else self.values.shape[1]

    @cached_property
    def leading(self) -> list[list[str]]:
        """Labels of up to `N_LEADING` genes that distinguish each factor, most distinctive first.

        Of genes held directly, the gene.
        """
        if self.values is None:
            return [[label] for label in self.labels]
        return [[self.labels[g] for g in genes] for genes in leading_genes(self.values, N_LEADING)]

    @property
    def factor_names(self) -> tuple[str, ...]:
        """Names of the K factors: number and leading genes, or the gene that is held directly."""
        if self.values is None:
            return tuple(self.labels)
        return tuple(
            f"{k}: {', '.join(genes[:_IN_A_NAME])}" for k, genes in enumerate(self.leading, start=1)
        )

    def of(self, genes: Sequence[int] | Int64Array) -> tuple[Int64Array, Float32Array | None]:
        """The factors that some genes need, and their loadings.

        Args:
            genes: n indices.

        Returns:
            (k,) indices of factors with a loading, at least one; and the loadings (n, k), or None
            if the maps of these factors are the genes' rates, in this order.
        """
        chosen = np.asarray(genes, np.int64)
        if self.values is None:
            return chosen, None
        rows = self.values[chosen]
        used = np.flatnonzero(rows.any(axis=0))
        used = used if used.size else np.zeros(1, np.int64)
        return used, np.ascontiguousarray(rows[:, used])

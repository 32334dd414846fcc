"""Loadings of a field: how much of each factor a gene has, and what the factors are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from virchow_st.run.panel import Panel
from virchow_st.types import Float32Array, Float64Array, Int64Array

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


def leading_genes(values: Float32Array, n: int) -> list[Int64Array]:
    """Indices of the genes that tell each factor from the others.

    With θ the loadings divided by their sum over genes, gene g leads factor k if ``θ[g, k]`` is
    the largest of its row, with weight ``min over l ≠ k of θ_gk log(θ_gk / θ_gl) + θ_gl − θ_gk``
    (Dey, Hsiao & Stephens 2017, PLoS Genetics 13:e1006599). The term falls as θ_gl rises to θ_gk,
    so that the minimum is at the second largest of the row. Genes of equal weight follow by θ.

    Args:
        values: (G, K) ≥ 0.
        n: most genes per factor.

    Returns:
        K arrays of up to ``n`` indices; empty for a factor that no gene has.

    Example:
        >>> leading_genes(np.array([[9, 8], [1, 0], [0, 2]], np.float32), 2)
        [array([1, 0]), array([2, 0])]
    """
    theta = values.astype(np.float64)
    theta /= np.maximum(theta.sum(axis=0), np.finfo(np.float64).tiny)
    weight = _distinctiveness(theta)
    found = []
    for k in range(theta.shape[1]):
        order = np.lexsort((-theta[:, k], -weight[:, k]))[:n]
        found.append(order[theta[order, k] > 0])
    return found


def _distinctiveness(theta: Float64Array) -> Float64Array:
    """Weight of each gene for the factor that it leads, (G, K); 0 for other factors."""
    n_genes, n_factors = theta.shape
    if n_factors == 1:
        return theta
    every = np.arange(n_genes)
    first = theta.argmax(axis=1)
    top = theta[every, first]
    second = np.partition(theta, -2, axis=1)[:, -2]
    # A gene of one factor alone has an infinite weight; a small share in its place keeps the order.
    ratio = top / np.maximum(second, 1e-3 * np.maximum(top, np.finfo(np.float64).tiny))
    weight = np.zeros_like(theta)
    weight[every, first] = np.where(top > 0, top * np.log(np.maximum(ratio, 1)) + second - top, 0)
    return np.maximum(weight, 0)

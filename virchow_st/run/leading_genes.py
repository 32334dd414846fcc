"""The genes that distinguish a factor from the others."""

from __future__ import annotations

import numpy as np

from virchow_st.types import Float32Array, Float64Array, Int64Array


def leading_genes(values: Float32Array, n: int) -> list[Int64Array]:
    """Indices of the genes that distinguish each factor from the others.

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

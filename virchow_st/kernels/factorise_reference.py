"""Plain NumPy reference for `virchow_st.kernels.factorise`, with dense matrices in float64."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import xlogy

from virchow_st.types import Array, Float64Array, Int64Array


def expected_umis(
    start: Int64Array,
    index: Array,
    count: Array,
    own: Float64Array,
    other: Float64Array,
    first: int,
    last: int,
    out: Float64Array,
    log_sums: Float64Array,
) -> None:
    """``Σ_j x_ij·a_ik·b_jk / λ_ij`` and ``Σ_j x_ij·ln λ_ij`` of the rows of the range."""
    shape = (len(start) - 1, len(other))
    x = csr_matrix((count.astype(np.float64), index, start), shape).toarray()[first:last]
    rate = own[first:last] @ other.T
    out[first:last] = own[first:last] * ((x / rate) @ other)
    log_sums[first:last] = xlogy(x, rate).sum(1)


def multiplicative_steps(
    x: Float64Array,
    exposure: Float64Array,
    factors: Float64Array,
    loadings: Float64Array,
    prior: float,
    n_steps: int,
) -> tuple[Float64Array, Float64Array]:
    """Lee & Seung's updates (NIPS 13, 2001, 556), theorem 2, with exposures and a prior.

    Args:
        x: (n, G) counts, dense.
        exposure: (n,) > 0; x_ng has the mean ``exposure_n · Σ_k factors_nk·loadings_gk``.
        factors: (n, K) > 0 at the start.
        loadings: (G, K) > 0 at the start.
        prior: Strength a of the gamma prior with shape 1 + a, whose mode is the gene's share of all
            UMIs (half a UMI added to each gene).
        n_steps: Number of steps; each updates the factors and then the loadings.

    Returns:
        factors and loadings after the steps.
    """
    mode = (x.sum(0) + 0.5)[:, None]
    mode = mode / mode.sum()
    for _ in range(n_steps):
        rate = exposure[:, None] * (factors @ loadings.T)
        up = exposure[:, None] * ((x / rate) @ loadings)
        factors = factors * up / (exposure[:, None] * loadings.sum(0))
        rate = exposure[:, None] * (factors @ loadings.T)
        scaled = exposure[:, None] * factors
        umis = loadings * ((x / rate).T @ scaled)
        loadings = (umis + prior) / (scaled.sum(0) + prior / mode)
    return factors, loadings

"""Sums over the scored bins of a patch for genes whose rates are factors times loadings.

The rate of gene g in bin x is ``Λ_g(x) = Σ_k W_gk·H_k(x)``. Sums that contain counts need rates
only where there are counts, so that all genes of a patch cost time proportional to their non-zero
counts times K, and no array of the size genes × bins is made. Sums of rates alone follow from the
sums of the factors (`virchow_st.metrics.factor_scores`).

Genes are independent and each has its own row of the output. Calls over disjoint ranges of genes
may run in parallel (the GIL is released). `virchow_st.kernels.factor_moments_reference` is the same
computation in plain NumPy, with dense rates.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from virchow_st.types import Array, BoolArray, Float64Array, Int64Array

COUNT, COUNT_SQUARED, NONZERO, COUNT_LOG_RATE, COUNT_LOG_COUNT, COUNT_RATE = range(6)
"""Columns of the output; from the last one on there is a column for each prediction."""


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def factor_moments(
    start: Int64Array,
    position: Array,
    count: Array,
    loadings: Array,
    factors: Array,
    mask: BoolArray,
    factor: int,
    rate_floor: float,
    first: int,
    last: int,
    out: Float64Array,
) -> None:
    """Add the sums of genes ``first`` to ``last - 1`` over the scored bins of one patch.

    The counts K of a scored bin are the sums over its 2 µm bins.

    Args:
        start: (G + 1,) int64, index of each gene's first count, and the end of the last gene's.
        position: (nnz,) uint16 ``row * C + col`` of the 2 µm bins, in any order within a gene.
        count: (nnz,) UMIs, > 0.
        loadings: (G, K) float, W.
        factors: (P, R * C, K) float, H of the scored bins (row-major) for P ≥ 1 predictions, summed
            over the 2 µm bins of each. The first is the one that is scored; of the others only
            ΣK·Λ is computed. Values where the mask is False are never read.
        mask: (R, C) bool, True = scored, in bins of the scale; counts elsewhere are ignored.
        factor: Side of a scored bin in 2 µm bins.
        rate_floor: Smallest rate whose logarithm is taken, UMIs per scored bin, > 0.
        first, last: Half-open range of genes.
        out: (G, 5 + P) float64, incremented: ΣK, ΣK², number of bins with K > 0, ΣK·ln Λ, ΣK·ln K,
            and ΣK·Λ of each prediction.
    """
    P, _, n_factors = factors.shape
    n_cols = mask.shape[1]
    scored = mask.ravel()
    umis = np.zeros(len(scored))
    filled = np.empty(len(scored), np.int64)
    for g in range(first, last):
        n_filled = 0
        for e in range(start[g], start[g + 1]):
            row, col = divmod(np.int64(position[e]), n_cols * factor)
            i = row // factor * n_cols + col // factor
            if scored[i]:
                if umis[i] == 0:
                    filled[n_filled] = i
                    n_filled += 1
                umis[i] += count[e]
        for f in range(n_filled):
            i = filled[f]
            k = umis[i]
            umis[i] = 0.0
            out[g, COUNT] += k
            out[g, COUNT_SQUARED] += k * k
            out[g, NONZERO] += 1.0
            out[g, COUNT_LOG_COUNT] += k * np.log(k)
            for p in range(P):
                rate = 0.0
                for j in range(n_factors):
                    rate += np.float64(loadings[g, j]) * np.float64(factors[p, i, j])
                out[g, COUNT_RATE + p] += k * rate
                if p == 0:
                    out[g, COUNT_LOG_RATE] += k * np.log(max(rate, rate_floor))

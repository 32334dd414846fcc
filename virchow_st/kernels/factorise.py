"""Expected UMIs of each factor in a row of counts: the step of a Poisson factorisation.

The counts x of a sparse matrix are modelled as Poisson with rate Σ_k a_ik·b_jk. Each count is
divided among the K factors in proportion to their shares of its rate, and the parts are summed over
the row. This is both the E-step of the EM algorithm for the model and the numerator of the
multiplicative updates of Lee & Seung (NIPS 13, 2001, 556). It is the same function for both sides
of the matrix: rows as they are give the update of a, rows of the transposed matrix that of b.

Rows are independent and each writes to its own part of the output. Calls over disjoint ranges of
rows may therefore run in parallel (the GIL is released), and the result does not depend on how the
rows are divided. The cost is proportional to the number of non-zero counts times K.
`virchow_st.kernels.factorise_reference` is the same computation in plain NumPy.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from virchow_st.types import Array, Float64Array, Int64Array


# Sums over factors may be reordered, so that they are computed several at a time (SIMD).
@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
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
    """Divide the counts of rows ``first`` to ``last - 1`` among the factors.

    Args:
        start: (n + 1,) int64, index of each row's first count, and the end of the last row's.
        index: (nnz,) columns of the counts, each below m.
        count: (nnz,) counts x > 0, UMIs.
        own: (n, K) float64 > 0, weights a of the rows.
        other: (m, K) float64 > 0, weights b of the columns.
        first, last: Half-open range of rows to compute.
        out: (n, K) float64 output, ``Σ_j x_ij·a_ik·b_jk / λ_ij`` with ``λ_ij = Σ_k a_ik·b_jk``; a
            row sums to the row's counts. Only the rows of the range are written.
        log_sums: (n,) float64 output, ``Σ_j x_ij·ln λ_ij``; only the range is written.
    """
    K = own.shape[1]
    share = np.empty(K)
    for i in range(first, last):
        share[:] = 0.0
        log_sum = 0.0
        for e in range(start[i], start[i + 1]):
            j = np.int64(index[e])
            rate = 0.0
            for k in range(K):
                rate += own[i, k] * other[j, k]
            x = np.float64(count[e])
            log_sum += x * np.log(rate)
            per_rate = x / rate
            for k in range(K):
                share[k] += per_rate * other[j, k]
        for k in range(K):
            out[i, k] = own[i, k] * share[k]
        log_sums[i] = log_sum

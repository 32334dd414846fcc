"""Where a Poisson factorisation starts: the gene profiles of groups of similar rows.

An EM algorithm for many factors ends in different local maxima from different starts, and needs
many steps from a start at which the factors are nearly alike. Rows of sparse counts have few genes
in common, so that single rows are poor starts. The rows are therefore compared by their leading
singular vectors, to which all genes contribute, and grouped; each group's mean profile is a start.

Letters: n rows, G genes, K factors.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from virchow_st.training.coverage import Coverage
from virchow_st.training.rows import SparseRows
from virchow_st.types import Float64Array, Int64Array

_MEAN_SHARE = 0.1  # of all rows' mean profile in each start, so that no loading starts at 0
_EXTRA_VECTORS = 8
_N_POWERS = 3
_N_GROUPINGS = 5
_N_ROUNDS = 20


def start_loadings(counts: SparseRows, n_factors: int, seed: int) -> Float64Array:
    """Gene profiles of K groups of rows.

    Rows are described by the K leading singular vectors of the square roots of their counts, whose
    Poisson variance is the same for all genes, scaled to length 1, so that only the mix of genes
    counts. The best of five k-means groupings is used. A group's profile is mixed with a tenth of
    the mean profile of all rows. On simulated rows of 18,000 genes this start led to a higher
    likelihood, and to a better prediction of held-out counts, than random groups, single rows,
    neighbours of single rows or random profiles did after as many steps; on 187 spots of a breast
    section all starts were about as good.

    Rows that measured different genes are compared by the genes that all of them measured, and a
    group's profile of a gene is of the rows that have it.

    Only the group of each row depends on the singular vectors, so that their rounding, which may
    depend on the number of threads of the linear algebra library, does not reach the result.

    Args:
        counts: Rows with at least one UMI in all.
        n_factors: Number of profiles K.
        seed: Seed of the random numbers.

    Returns:
        (G, K) float64 > 0, each column sums to 1.

    Example:
        >>> dense = np.repeat([[5, 1, 0], [0, 1, 9]], 20, axis=0)
        >>> rows = SparseRows.from_dense(dense, exposure=np.full(40, 64.0))
        >>> profiles = start_loadings(rows, n_factors=2, seed=0)
        >>> profiles.T[np.argsort(profiles[0])].round(2)
        array([[0.03, 0.1 , 0.87],
               [0.78, 0.16, 0.06]])
    """
    rng = np.random.default_rng(seed)
    mean = counts.gene_shares
    points = _leading_vectors(_comparable(counts), n_factors, rng)
    groupings = [_grouped(points, n_factors, rng) for _ in range(_N_GROUPINGS)]
    group, _ = min(groupings, key=lambda grouping: grouping[1])
    cell = counts.gene.astype(np.int64) * n_factors + group[counts.row]
    umis = np.bincount(cell, counts.count, counts.n_genes * n_factors)
    profiles: Float64Array = umis.reshape(counts.n_genes, n_factors).astype(np.float64)
    if counts.coverage is not None:
        profiles = _per_exposure(profiles, counts, counts.coverage, group, mean)
    for k in np.flatnonzero(profiles.sum(0) == 0):  # equal starts would stay equal
        profiles[:, k] = mean * rng.gamma(1.0, size=counts.n_genes)
    profiles = (1 - _MEAN_SHARE) * profiles / profiles.sum(0) + _MEAN_SHARE * mean[:, None]
    return np.asarray(profiles / profiles.sum(0))


def _comparable(counts: SparseRows) -> SparseRows:
    """The counts of the genes that all rows measured; all counts if there are none of those."""
    if counts.coverage is None:
        return counts
    kept = counts.coverage.everywhere[counts.gene]
    if not kept.any():
        return counts
    ends = np.concatenate([[0], np.cumsum(kept)])
    return SparseRows(
        ends[counts.indptr], counts.gene[kept], counts.count[kept], counts.exposure, counts.n_genes
    )


def _per_exposure(
    umis: Float64Array,
    counts: SparseRows,
    coverage: Coverage,
    group: Int64Array,
    mean: Float64Array,
) -> Float64Array:
    """UMIs (G, K) of groups per exposure; at the mean of all rows where no row measured a gene."""
    of_group = np.zeros((len(counts), umis.shape[1]))
    of_group[np.arange(len(counts)), group] = counts.exposure
    exposed = coverage.of_rows(of_group)
    known = exposed > 0
    rate = umis / np.where(known, exposed, 1.0)
    depth = rate.sum(0) / np.maximum((mean[:, None] * known).sum(0), 1e-12)
    return np.asarray(np.where(known, rate, mean[:, None] * depth))


def _leading_vectors(counts: SparseRows, n_vectors: int, rng: np.random.Generator) -> Float64Array:
    """Rows in the space of the leading singular vectors of the square roots of their counts.

    By power iterations on random vectors (Halko, Martinsson & Tropp, SIAM Review 53, 2011, 217).

    Returns:
        (n, K) float64, K at most n and G, rows of length 1 (0 for a row without counts).
    """
    root = np.sqrt(counts.count.astype(np.float64))
    matrix = csr_matrix((root, counts.gene, counts.indptr), (len(counts), counts.n_genes))
    width = min(n_vectors + _EXTRA_VECTORS, *matrix.shape)
    y = matrix @ rng.normal(size=(counts.n_genes, width))
    for _ in range(_N_POWERS):
        right, _ = np.linalg.qr(matrix.T @ np.linalg.qr(y)[0])
        y = matrix @ right
    left, _ = np.linalg.qr(y)
    u, s, _ = np.linalg.svd((matrix.T @ left).T, full_matrices=False)
    points = ((left @ u) * s)[:, :n_vectors]
    length = np.linalg.norm(points, axis=1, keepdims=True)
    return np.asarray(points / np.where(length > 0, length, 1.0))


def _grouped(
    points: Float64Array, n_groups: int, rng: np.random.Generator
) -> tuple[Int64Array, float]:
    """k-means with starts that lie apart (Arthur & Vassilvitskii, SODA 2007, 1027).

    Returns:
        (n,) group of each point, and the sum of squared distances to the groups' centres.
    """
    centres = np.empty((n_groups, points.shape[1]))
    apart = np.ones(len(points))
    for k in range(n_groups):
        weight = apart if apart.sum() > 0 else np.ones(len(points))
        centres[k] = points[rng.choice(len(points), p=weight / weight.sum())]
        to_new = ((points - centres[k]) ** 2).sum(1)
        apart = to_new if k == 0 else np.minimum(apart, to_new)
    for _ in range(_N_ROUNDS):
        distance = (centres**2).sum(1) - 2 * points @ centres.T
        group = distance.argmin(1)
        for k in np.unique(group):
            centres[k] = points[group == k].mean(0)
    inertia = distance.min(1).sum() + (points**2).sum()
    return group.astype(np.int64), float(inertia)

import numpy as np
import pytest
from scipy import sparse as sp

from virchow_st.kernels import sparse, sparse_reference
from virchow_st.types import PATCH_POSITIONS


def columns(seed=0, n_features=40, n_columns=3000, n_patches=4):
    """A CSC matrix with stored zeros, and a patch, a mark and a position for each column."""
    rng = np.random.default_rng(seed)
    m = sp.random(n_features, n_columns, 0.1, "csc", random_state=rng)
    m.data = rng.integers(0, 5, m.nnz).astype(np.uint32)
    patch = rng.integers(-2, n_patches, n_columns).astype(np.int32)
    position = np.zeros(n_columns, np.uint16)
    for p in range(n_patches):
        mine = np.flatnonzero(patch == p)
        position[mine] = rng.choice(PATCH_POSITIONS, len(mine), replace=False)
    gene_of_feature = np.where(np.arange(n_features) % 7 == 3, -1, 0)
    gene_of_feature[gene_of_feature == 0] = np.arange((gene_of_feature == 0).sum())
    return m, patch, position, gene_of_feature.astype(np.int32)


def gather(kernels, block, seed=0):
    m, patch, position, gene_of_feature = columns(seed)
    indptr, n_genes = m.indptr.astype(np.int64), gene_of_feature.max() + 1
    lengths = np.bincount(patch[patch >= 0], np.diff(indptr)[patch >= 0]).astype(np.int64)
    room = np.concatenate([[0], np.cumsum(lengths)])
    out = [np.zeros(room[-1], t) for t in (np.uint16, np.uint16, np.uint32)]
    cursor, totals, column = room[:-1].copy(), np.zeros(n_genes, np.int64), 0
    for start in range(0, m.nnz, block):
        part = slice(start, start + block)
        indices, values = m.indices[part].astype(np.int64), m.data[part]
        column = kernels.scatter_counts(
            start, column, indices, values, indptr, gene_of_feature, patch, position, cursor,
            *out, totals,
        )  # fmt: skip
    filled = kernels.close_gaps(room, cursor, *out)
    out = [a[: filled[-1]] for a in out]
    assert kernels.sort_patches(filled, *out, int(n_genes)) == 0
    return filled, *out, totals


@pytest.mark.parametrize("block", [1, 777, 10**6])
def test_kernels_equal_reference(block):
    for came, expected in zip(gather(sparse, block), gather(sparse_reference, 777), strict=True):
        np.testing.assert_array_equal(came, expected)


def test_kernels_equal_dense():
    m, patch, position, gene_of_feature = columns()
    indptr, gene, pos, count, totals = gather(sparse, 500)
    dense = m.toarray()[gene_of_feature >= 0]
    np.testing.assert_array_equal(totals, dense[:, patch != sparse.NOT_TISSUE].sum(axis=1))
    for p in range(4):
        expected = np.zeros((len(dense), PATCH_POSITIONS), np.int64)
        expected[:, position[patch == p]] = dense[:, patch == p]
        came = slice(indptr[p], indptr[p + 1])
        g, at = np.nonzero(expected)  # row-major: by gene, then by position
        np.testing.assert_array_equal(gene[came], g)
        np.testing.assert_array_equal(pos[came], at)
        np.testing.assert_array_equal(count[came], expected[g, at])


@pytest.mark.parametrize("kernels", [sparse, sparse_reference], ids=["numba", "numpy"])
def test_repeated_entries_are_counted(kernels):
    indptr = np.array([0, 4, 4, 6], np.int64)
    gene = np.array([7, 2, 7, 2, 7, 7], np.uint32)
    position = np.array([9, 1, 9, 2, 9, 9], np.uint16)
    count = np.arange(6, dtype=np.uint32)
    assert kernels.sort_patches(indptr, gene, position, count, 8) == 2
    np.testing.assert_array_equal(gene, [2, 2, 7, 7, 7, 7])
    np.testing.assert_array_equal(count, [1, 3, 0, 2, 4, 5])


def test_no_patches():
    none = np.zeros(0, np.uint16)
    assert sparse.sort_patches(np.zeros(1, np.int64), none, none, none.astype(np.uint32), 3) == 0

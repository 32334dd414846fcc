"""The kernels that sort a streamed count matrix into patches equal their plain reference."""

import numpy as np
import pytest
from scipy import sparse as sp

from virchow_st.kernels import sparse, sparse_reference
from virchow_st.types import PATCH_POSITIONS


def columns(seed=0, n_features=40, n_columns=3000, n_patches=4):
    """A CSC matrix with stored zeros, and a patch, a mark and a position for each column."""
    rng = np.random.default_rng(seed)
    m = sp.random(n_features, n_columns, 0.1, "csc", random_state=rng)
    m.data = rng.integers(0, 6, m.nnz).astype(np.uint32)
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
    out = [np.zeros(room[-1], np.uint16) for _ in range(2)]
    cursor, totals, column, larger = room[:-1].copy(), np.zeros(n_genes, np.int64), 0, []
    for start in range(0, m.nnz, block):
        part = slice(start, start + block)
        indices, values = m.indices[part].astype(np.int64), m.data[part]
        large = np.full((np.count_nonzero(values > 3), 3), -1, np.int64)
        column, n_large = kernels.scatter_counts(
            start, column, indices, values, indptr, gene_of_feature, patch, position, cursor,
            *out, large, totals,
        )  # fmt: skip
        larger.append(large[:n_large])
    filled = kernels.close_gaps(room, cursor, *out)
    out = [a[: filled[-1]] for a in out]
    assert kernels.sort_patches(filled, *out, int(n_genes)) == 0
    return filled, *out, np.concatenate(larger), totals


@pytest.mark.parametrize("block", [1, 777, 10**6])
def test_kernels_equal_reference(block):
    for actual, expected in zip(gather(sparse, block), gather(sparse_reference, 777), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_kernels_equal_dense():
    m, patch, position, gene_of_feature = columns()
    indptr, gene, entry, large, totals = gather(sparse, 500)
    dense = m.toarray()[gene_of_feature >= 0]
    np.testing.assert_array_equal(totals, dense[:, patch != sparse.NOT_TISSUE].sum(axis=1))
    n_large = 0
    for p in range(4):
        expected = np.zeros((len(dense), PATCH_POSITIONS), np.int64)
        expected[:, position[patch == p]] = dense[:, patch == p]
        actual = slice(indptr[p], indptr[p + 1])
        g, at = np.nonzero(expected)  # row-major: by gene, then by position
        np.testing.assert_array_equal(gene[actual], g)
        np.testing.assert_array_equal(entry[actual] & 0x3FFF, at)
        count = expected[g, at]
        np.testing.assert_array_equal(entry[actual] >> 14, np.where(count <= 3, count, 0))
        listed = large[large[:, 0] == p]
        listed = listed[listed[:, 1].argsort()]
        np.testing.assert_array_equal(listed[:, 1], (g << 14 | at)[count > 3])
        np.testing.assert_array_equal(listed[:, 2], count[count > 3])
        n_large += len(listed)
    assert n_large == len(large) > 100


@pytest.mark.parametrize("kernels", [sparse, sparse_reference], ids=["numba", "numpy"])
def test_repeated_entries_are_counted(kernels):
    indptr = np.array([0, 4, 4, 6], np.int64)
    gene = np.array([7, 2, 7, 2, 7, 7], np.uint32)
    entry = np.array([9, 1, 9 | 1 << 14, 2, 9, 9 | 3 << 14], np.uint16)
    assert kernels.sort_patches(indptr, gene, entry, 8) == 2
    np.testing.assert_array_equal(gene, [2, 2, 7, 7, 7, 7])
    np.testing.assert_array_equal(entry & 0x3FFF, [1, 2, 9, 9, 9, 9])
    np.testing.assert_array_equal(entry[4:] >> 14, [0, 3])


def test_no_patches():
    none = np.zeros(0, np.uint16)
    assert sparse.sort_patches(np.zeros(1, np.int64), none, none, 3) == 0


TEMPLATE = np.frombuffer(b"s_002um_\0\0\0\0\0_\0\0\0\0\0-1", np.uint8)
BARCODES = [b"s_002um_00012_00345-1", b"s_002um_99999_00000-1", b"s_002um_03349_03349-1"]
MISFITS = [b"s_008um_00012_00345-1", b"s_002um_0001x_00345-1", b"s_002um_00012_00345-2",
           b"s_002um_00012_00345-", b"s_002um_00012_00345-1a", b"s_002um_00012_0034/-1",
           b""]  # fmt: skip


@pytest.mark.parametrize("kernels", [sparse, sparse_reference], ids=["numba", "numpy"])
@pytest.mark.parametrize("width", [21, 22, 40])
def test_barcodes(kernels, width):
    def parse(barcodes):
        letters = np.array(barcodes, f"S{width}").view(np.uint8).reshape(-1, width)
        row, col = np.full((2, len(barcodes)), -1, np.int32)
        return kernels.parse_bins(letters, TEMPLATE, row, col), row.tolist(), col.tolist()

    assert parse(BARCODES) == (-1, [12, 99999, 3349], [345, 0, 3349])
    assert parse([]) == (-1, [], [])
    for misfit in MISFITS:
        if len(misfit) <= width:
            assert parse([*BARCODES, misfit])[0] == 3, misfit


def place(kernels, off_grid=None):
    rng = np.random.default_rng(0)
    rows, cols = 150, 140
    listed = rng.random((rows, cols)) < 0.9
    patch_of_bin = np.full((rows, cols), sparse.OUTSIDE_PATCHES, np.int32)
    patch_of_bin[2:130, 5:133] = 0
    patch_of_bin[rng.random((rows, cols)) < 0.3] = sparse.NOT_TISSUE
    row, col = (a.astype(np.int32) for a in rng.permutation(np.argwhere(listed)).T)
    n = len(row)
    indptr = np.concatenate([[0], np.cumsum(rng.integers(0, 9, n))])
    seen, patch = np.zeros((rows, cols), bool), np.full(n, 99, np.int32)
    position, room = np.zeros(n, np.uint16), np.zeros(1, np.int64)
    where = (np.array([2], np.int32), np.array([5], np.int32))
    if off_grid:
        row[700], col[700] = off_grid if off_grid != "not listed" else np.argwhere(~listed)[0]
    actual = [
        kernels.place_columns(
            start, row[part], col[part], indptr, patch_of_bin, listed, *where, seen, patch,
            position, room,
        )
        for start in range(0, n, 500)
        for part in [slice(start, start + 500)]
    ]  # fmt: skip
    return actual, row, col, patch_of_bin, np.diff(indptr), seen, patch, position, room


def test_columns_are_placed():
    actual, row, col, patch_of_bin, n_entries, seen, patch, position, room = place(sparse)
    for ours, reference in zip(place(sparse)[5:], place(sparse_reference)[5:], strict=True):
        np.testing.assert_array_equal(ours, reference)
    assert set(actual) == {-1}
    assert seen.sum() == len(row)
    np.testing.assert_array_equal(patch, patch_of_bin[row, col])
    inside = patch == 0
    np.testing.assert_array_equal(position[inside], ((row - 2) * 128 + col - 5)[inside])
    assert room == n_entries[inside].sum()


@pytest.mark.parametrize("kernels", [sparse, sparse_reference], ids=["numba", "numpy"])
@pytest.mark.parametrize("bin_", [(150, 0), (0, 140), (99_999, 99_999), "not listed"])
def test_column_off_the_grid_is_found(kernels, bin_):
    assert place(kernels, bin_)[0][1] == 200

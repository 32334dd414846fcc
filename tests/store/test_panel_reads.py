"""Panel reads equal scipy's slicing, pool like block sums, and refuse what the unpacker refuses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from tiny_store import write_store

from virchow_st.errors import StoreError
from virchow_st.store import format as fmt
from virchow_st.store.panel_reads import PanelCounts, read_dense, read_sparse
from virchow_st.store.reader import open_store

N_GENES = 9


@st.composite
def records(draw):
    """A record of up to 9 genes, some empty, and its counts as a scipy matrix (9, 16384)."""
    genes = draw(st.lists(st.integers(0, N_GENES - 1), max_size=N_GENES, unique=True))
    places = st.lists(st.integers(0, 16383), min_size=1, max_size=20, unique=True)
    # Around every boundary of the format, and where float32 begins to round.
    values = st.sampled_from([1, 2, 3, 4, 5, 255, 65536, 2**24 + 1, 2**32 - 1])
    entries = [(g, p, draw(values)) for g in sorted(genes) for p in sorted(draw(places))]
    gene, position, count = np.array(entries, np.int64).reshape(-1, 3).T
    payload = fmt.pack_counts(gene, position, count.astype(np.uint32))
    matrix = sparse.csr_array((count, (gene, position)), shape=(N_GENES, 16384))
    return memoryview(payload), matrix


panels = st.lists(st.integers(0, N_GENES - 1), max_size=15)  # repeats, any order, or nothing


def dense_of(counts: PanelCounts) -> np.ndarray:
    """Sparse counts as (G, side, side), every entry met once."""
    out = np.zeros((counts.n_genes, counts.side**2), np.int64)
    np.add.at(out, (counts.gene, counts.position), counts.count.astype(np.int64))
    assert np.count_nonzero(out) == len(counts.count)
    return out.reshape(-1, counts.side, counts.side)


@settings(deadline=None, max_examples=100)
@given(records(), panels)
def test_equal_to_scipys_slicing(record, panel):
    payload, matrix = record
    expected = matrix[np.array(panel, int)].toarray().reshape(-1, 128, 128)
    buffer = np.full((len(panel), 128, 128), np.nan, np.float32)
    assert read_dense(payload, N_GENES, panel, buffer) is buffer
    np.testing.assert_array_equal(buffer, expected.astype(np.float32))
    np.testing.assert_array_equal(read_dense(payload, N_GENES, panel), buffer)

    counts = read_sparse(payload, N_GENES, panel)
    gene, position = np.nonzero(expected.reshape(-1, 16384))  # by gene, then by position
    np.testing.assert_array_equal(counts.gene, gene)
    np.testing.assert_array_equal(counts.position, position)
    np.testing.assert_array_equal(counts.count, expected.reshape(-1, 16384)[gene, position])
    assert [a.dtype for a in (counts.gene, counts.position, counts.count)] == ["u2", "u2", "u4"]


@settings(deadline=None, max_examples=60)
@given(records(), panels, st.sampled_from([2, 4, 8, 16]))
def test_pooled_counts_are_block_sums(record, panel, bin_um):
    payload, matrix = record
    f = bin_um // 2
    fine = matrix[np.array(panel, int)].toarray().reshape(-1, 128 // f, f, 128 // f, f)
    expected = fine.sum((2, 4))
    counts = read_sparse(payload, N_GENES, panel)
    if (expected >= 2**32).any():
        with pytest.raises(StoreError, match=f"a sum over {bin_um} µm is beyond 32 bits"):
            counts.pooled(bin_um)
        return
    pooled = counts.pooled(bin_um)
    assert (pooled.bin_um, pooled.side, pooled.n_genes) == (bin_um, 128 // f, len(panel))
    np.testing.assert_array_equal(dense_of(pooled), expected)
    keys = pooled.gene.astype(int) * 16384 + pooled.position
    assert (np.diff(keys) > 0).all()
    assert [a.dtype for a in (pooled.gene, pooled.position, pooled.count)] == ["u2", "u2", "u4"]


def test_sums_up_to_the_last_of_32_bits_fit():
    position, top = np.array([0, 1]), 2**32 - 1
    for count, fits in (([top - 7, 7], True), ([top - 7, 8], False)):
        payload = fmt.pack_counts(np.zeros(2, int), position, np.array(count, np.uint32))
        counts = read_sparse(memoryview(payload), 1, [0])
        if fits:
            assert counts.pooled(16).count.tolist() == [top]
        else:
            with pytest.raises(StoreError, match="beyond 32 bits"):
                counts.pooled(16)


def test_pooled_only_once_and_to_known_bins():
    counts = read_sparse(memoryview(bytes(12)), 1, [0])
    with pytest.raises(ValueError, match=r"bin_um: expected one of \(2, 4, 8, 16\), got 6"):
        counts.pooled(6)
    with pytest.raises(ValueError, match="expected counts at 2 µm, got 4 µm"):
        counts.pooled(4).pooled(8)
    assert counts.pooled(2) is counts


# --- malformed records ------------------------------------------------------------------------


def refusal(read, payload):
    """What a reader says to a payload; None where it reads it."""
    try:
        read(memoryview(payload))
    except StoreError as e:
        return str(e)
    return None


def assert_refused_alike(payload, n_genes=N_GENES):
    expected = refusal(lambda p: fmt.unpack_counts(p, n_genes), payload)
    assert refusal(lambda p: read_dense(p, n_genes, [0, n_genes - 1]), payload) == expected
    assert refusal(lambda p: read_sparse(p, n_genes, []), payload) == expected
    return expected


def record_of(genes=(1, 2), sizes=(1, 1), entries=(0x4000, 0x8001), pad=(), escapes=()):
    header = [len(genes), len(entries), len(escapes) // 2]
    words = [*genes, *sizes, *entries, *pad]
    parts = np.array(header, "<u4"), np.array(words, "<u2"), np.array(escapes, "<u4")
    return b"".join(part.tobytes() for part in parts)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (record_of(), None),
        (b"", "too short for its header"),
        (record_of() + b"\0", "header says 24 bytes, there are 25"),
        (b"\xff" * 12, "header says"),
        (record_of(genes=(2, 1)), "out of order"),
        (record_of(genes=(1, 1)), "out of order"),
        (record_of(genes=(1, 3)), "beyond the gene list"),
        (record_of(sizes=(65535, 65535)), "do not add up"),
        (record_of(sizes=(0, 2)), "do not add up"),
        (record_of(entries=(0x4000, 0x0001)), "escapes do not match"),
        (record_of(entries=(0x4000, 0x0001), escapes=(2**32 - 1, 9)), "escapes do not match"),
        (record_of(entries=(0, 0), escapes=(1, 9, 0, 9)), "escapes do not match"),
        (record_of(entries=(0, 0), escapes=(0, 9, 0, 9)), "escapes do not match"),
        (record_of(entries=(0x4000, 0x0001), escapes=(1, 3)), "count below 4"),
        (record_of(genes=(1,), sizes=(2,), entries=(0x4001, 0x4000)), "positions"),
        (record_of(genes=(1,), sizes=(2,), entries=(0x4001, 0x8001)), "positions"),
        (record_of(genes=(1,), sizes=(1,), entries=(0x4001,), pad=(1,)), "padding"),
    ],
)
def test_forbidden_records_are_refused(payload, reason):
    actual = assert_refused_alike(payload, n_genes=3)
    assert (actual is None) if reason is None else (reason in actual)


u16 = st.integers(0, 65535) | st.integers(0, 5) | st.sampled_from([0x4000, 0x4001, 0x8002, 0xFFFF])


@st.composite
def almost_records(draw):
    """Payloads whose length is right, so that the checks beyond the header are reached."""
    n_present, n = draw(st.integers(0, 3)), draw(st.integers(0, 5))
    escapes = draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=3))
    words = draw(st.lists(u16, min_size=2 * n_present + n, max_size=2 * n_present + n))
    return record_of(
        words[:n_present],
        words[n_present : 2 * n_present],
        words[2 * n_present :],
        draw(st.sampled_from([(0,), (0,), (1,)])) if n % 2 else (),
        [number for escape in escapes for number in escape],
    )


@settings(deadline=None, max_examples=500)
@given(almost_records() | st.binary(max_size=100))
def test_any_bytes_are_read_or_refused_as_the_unpacker_does(payload):
    assert_refused_alike(payload)


@settings(deadline=None, max_examples=200)
@given(records(), st.data())
def test_a_changed_word_is_read_or_refused_as_the_unpacker_does(record, data):
    payload = np.frombuffer(record[0], "<u2").copy()
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(u16)
    assert_refused_alike(payload.tobytes())


def test_a_payload_at_an_odd_address_is_read():
    payload = fmt.pack_counts(np.array([1]), np.array([5]), np.array([70000], np.uint32))
    shifted = memoryview(bytearray(b"\0" + payload))[1:]
    assert read_dense(shifted, 2, [1])[0, 0, 5] == 70000


# --- a store's patches --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("panel") / "A.vst", n_patches=4, rate=2.0)


def test_patches_read_panels(store):
    panel = np.array([5, 0, 3])
    for patch in store:
        expected = patch.counts(panel).toarray().reshape(3, 128, 128)
        np.testing.assert_array_equal(patch.dense_counts(panel), expected)
        np.testing.assert_array_equal(dense_of(patch.panel_counts(panel)), expected)
        blocks = expected.reshape(3, 16, 8, 16, 8).sum((2, 4))
        np.testing.assert_array_equal(dense_of(patch.panel_counts(panel, bin_um=16)), blocks)
        assert patch.dense_counts(panel).dtype == np.float32


def test_threads_read_different_patches(store):
    batch = np.full((32, 6, 128, 128), np.nan, np.float32)
    with ThreadPoolExecutor(8) as pool:
        read = [
            pool.submit(store[i % 4].dense_counts, range(6), out) for i, out in enumerate(batch)
        ]
        assert all(r.result() is not None for r in read)
    for i, out in enumerate(batch):
        np.testing.assert_array_equal(out.reshape(6, -1), store[i % 4].counts().toarray())


@pytest.mark.parametrize(
    ("panel", "error", "reason"),
    [
        ([0, 6], IndexError, "expected gene indices 0 to 5, got 6"),
        ([-1], IndexError, "expected gene indices 0 to 5, got -1"),
        ([2**63], IndexError, "got 9223372036854775808"),
        ([0.5], ValueError, "expected a list of gene indices, got float64"),
        ([[0, 1]], ValueError, r"expected a list of gene indices, got int64 of shape \(1, 2\)"),
        (["ENSG00001"], ValueError, "expected a list of gene indices"),
        (np.zeros(65_537, int), ValueError, "expected at most 65536 genes, got 65537"),
    ],
)
def test_a_panel_that_is_none_is_refused(store, panel, error, reason):
    for read in (store[0].dense_counts, store[0].panel_counts):
        with pytest.raises(error, match=reason):
            read(panel)


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((2, 128, 127), np.float32),
        np.zeros((3, 128, 128), np.float32),
        np.zeros((2, 128, 128), np.float64),
        np.zeros((2, 128, 256), np.float32)[..., ::2],
        np.zeros((128, 128, 2), np.float32).T,
        np.broadcast_to(np.float32(0), (2, 128, 128)),
    ],
)
def test_a_buffer_that_does_not_fit_is_refused(store, out):
    with pytest.raises(ValueError, match=r"expected a writable C-contiguous float32 array"):
        store[0].dense_counts([0, 1], out)


def test_a_malformed_record_names_store_and_patch_and_leaves_the_buffer(store, monkeypatch):
    out = np.full((1, 128, 128), 7, np.float32)
    monkeypatch.setattr(
        "virchow_st.store.format.unseal", lambda key, value: memoryview(record_of(genes=(2, 1)))
    )
    with pytest.raises(StoreError, match=r"A\.vst: patch 1: counts record: .*see `vst verify`"):
        open_store(store.path)[1].dense_counts([0], out)
    assert (out == 7).all()

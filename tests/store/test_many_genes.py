"""Stores of more than 65,535 genes: format 2, with gene indices of four bytes."""

from __future__ import annotations

import json
from dataclasses import replace

import lmdb
import numpy as np
import pytest
from golden_bytes import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_store import JOB, make_manifest, make_records, write_records

from virchow_st.errors import StoreError
from virchow_st.store import format as fmt
from virchow_st.store.background import BackgroundWriter
from virchow_st.store.format import Kind
from virchow_st.store.panel_reads import read_dense, read_sparse
from virchow_st.store.reader import open_store, verify
from virchow_st.store.summary import summarise
from virchow_st.store.writer import StoreWriter

MANY = 70_000
POSITION = np.array([0, 129, 16383, 7, 8])
COUNT = np.array([1, 3, 4, 2, 70000], np.uint32)


def test_golden_counts():
    gene = np.array([3, 3, 3, 69_999, 69_999])
    assert fmt.pack_counts(gene, POSITION, COUNT, MANY) == golden("counts_wide")
    stored = fmt.unpack_counts(memoryview(golden("counts_wide")), MANY)
    assert stored.genes.tolist() == [3, 69_999]
    assert stored.indptr.tolist() == [0, 3, 5]
    assert stored.positions.tolist() == POSITION.tolist()
    assert stored.counts.tolist() == COUNT.tolist()


def test_padding_goes_by_genes_and_entries():
    one = np.array([65_536]), np.array([0]), np.array([1], np.uint32)
    payload = golden("counts_wide_unpadded")
    assert fmt.pack_counts(*one, MANY) == payload
    assert fmt.unpack_counts(memoryview(payload), MANY).genes.tolist() == [65_536]


@pytest.mark.parametrize(
    ("n_genes", "store_format", "dtype"),
    [(65_535, "virchow_st.store/1", "<u2"), (65_536, "virchow_st.store/2", "<u4")],
)
def test_the_number_of_genes_decides_format_and_width(n_genes, store_format, dtype):
    assert fmt.format_for(n_genes) == store_format
    assert fmt.gene_dtype(n_genes) == dtype


@st.composite
def records(draw):
    """(gene, position, count) of a patch of 70,000 genes, on both sides of 65,535."""
    genes = draw(
        st.lists(st.sampled_from([0, 1, 65_534, 65_535, 65_536, 69_999]), max_size=6, unique=True)
    )
    places = st.lists(st.integers(0, 16383), min_size=1, max_size=12, unique=True)
    values = st.sampled_from([1, 3, 4, 65_536, 2**32 - 1])
    entries = [(g, p, draw(values)) for g in sorted(genes) for p in sorted(draw(places))]
    gene, position, count = np.array(entries, np.int64).reshape(-1, 3).T
    return gene, position, count.astype(np.uint32)


@settings(deadline=None, max_examples=100)
@given(records(), st.sampled_from([np.int64, np.uint32]))
def test_there_and_back_and_by_panel(record, dtype):
    gene, position, count = record
    payload = memoryview(fmt.pack_counts(gene.astype(dtype), position, count, MANY))
    n_present, n = len(set(gene.tolist())), len(gene)
    n_escapes = int((count > 3).sum())
    expected = 12 + 6 * n_present + 2 * n + 2 * ((n_present + n) % 2) + 8 * n_escapes
    assert len(payload) == expected
    stored = fmt.unpack_counts(payload, MANY)
    np.testing.assert_array_equal(np.repeat(stored.genes, np.diff(stored.indptr)), gene)
    np.testing.assert_array_equal(stored.positions, position)
    np.testing.assert_array_equal(stored.counts, count)

    panel = [69_999, 0, 65_535, 7, 65_536]
    dense = np.zeros((len(panel), 16384))
    for row, wanted in zip(dense, panel, strict=True):
        row[position[gene == wanted]] = count[gene == wanted].astype(np.float32)
    np.testing.assert_array_equal(read_dense(payload, MANY, panel).reshape(-1, 16384), dense)
    sparse = read_sparse(payload, MANY, panel)
    place, at = np.nonzero(dense)
    np.testing.assert_array_equal(sparse.gene, place)
    np.testing.assert_array_equal(sparse.position, at)


def many_gene_records(n_patches=3):
    """Patches whose six genes are spread over a list of 70,000."""
    places = np.array([0, 1, 40_000, 65_535, 65_536, 69_999])
    return [
        replace(record, gene=places[record.gene]) for record in make_records(n_patches, rate=2.0)
    ]


@pytest.mark.parametrize("token_dtype", ["float16", "int8"])
def test_store_written_in_the_background_is_read_and_verified(tmp_path, token_dtype):
    path, records_in = tmp_path / "A.vst", many_gene_records()
    with StoreWriter(path, JOB, token_dtype, MANY) as writer:
        with BackgroundWriter(writer) as thread:
            thread.append(records_in[:2])
        assert writer.next_index == 2
    with StoreWriter(path, JOB, token_dtype, MANY) as writer:  # resumed
        writer.append(records_in[2:])
        writer.finish(make_manifest(records_in, MANY))
    store = open_store(path)
    assert store.manifest["format"] == "virchow_st.store/2"
    assert len(store.genes) == MANY
    assert verify(store) == []
    assert summarise(store)["n_nonzero"] == sum(len(record.gene) for record in records_in)
    for patch, record in zip(store, records_in, strict=True):
        expected = np.zeros((MANY, 16384), np.uint32)
        expected[record.gene, record.position] = record.count
        np.testing.assert_array_equal(
            patch.counts([69_999, 65_536]).toarray(), expected[[-1, 65_536]]
        )
        dense = patch.dense_counts([69_999, 1]).reshape(2, -1)
        np.testing.assert_array_equal(dense, expected[[69_999, 1]])
        assert patch.panel_counts([65_535]).count.sum() == expected[65_535].sum()


def test_damage_in_a_wide_record_is_found(tmp_path):
    store = write_records(tmp_path / "A.vst", many_gene_records(2), MANY)
    gene, position, count = np.array([9, 9]), np.array([5, 6]), np.array([1, 1], np.uint32)
    key = fmt.key(1, Kind.COUNTS)
    narrow = fmt.seal(key, fmt.pack_counts(gene, position, count))
    with lmdb.open(str(store.path)) as env, env.begin(write=True) as txn:
        txn.put(key, narrow)
    store = open_store(store.path)
    (fault, *_) = verify(store)
    assert "patch 1, COUNTS: counts record: header says" in fault
    with pytest.raises(StoreError, match="header says"):
        store[1].dense_counts([0])


def test_format_1_with_too_many_genes_is_refused(tmp_path):
    store = write_records(tmp_path / "A.vst", many_gene_records(1), MANY)
    path = store.path / "store.json"
    manifest = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(manifest | {"format": "virchow_st.store/1"}), "utf-8")
    with pytest.raises(StoreError, match="expected at most 65535 in virchow_st.store/1; got 70000"):
        open_store(store.path)


def test_format_2_may_have_few_genes(tmp_path):
    """A later writer may have another reason for format 2: the width goes by the genes alone."""
    store = write_records(tmp_path / "A.vst", make_records(1), 6)
    before = store[0].counts().toarray()
    path = store.path / "store.json"
    manifest = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(manifest | {"format": "virchow_st.store/2"}), "utf-8")
    store = open_store(store.path)
    assert verify(store) == []
    np.testing.assert_array_equal(store[0].counts().toarray(), before)


def test_manifest_of_another_width_than_the_records_is_a_fault_of_the_caller(tmp_path):
    records_in = make_records(1)
    with StoreWriter(tmp_path / "A.vst", JOB) as writer:
        writer.append(records_in)
        with pytest.raises(ValueError, match="the manifest lists 70000"):
            writer.finish(make_manifest(records_in, MANY))

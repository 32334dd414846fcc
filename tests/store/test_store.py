"""Finished stores for their readers: complete, usable in any worker, refused if damaged."""

import json
import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import lmdb
import numpy as np
import pytest
from tiny_store import JOB, checksum_of_all, make_records, write_store

from virchow_st.errors import StoreError
from virchow_st.store import format as fmt
from virchow_st.store.format import Kind
from virchow_st.store.reader import open_store, verify
from virchow_st.store.writer import StoreWriter


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "A.vst", n_patches=3)


def test_what_is_written_is_read(store):
    assert (len(store), store.patient, store.token_shape) == (3, "A", (16, 16, 8))
    for patch, record in zip(store, make_records(3), strict=True):
        assert (patch.row0, patch.col0) == (record.info.row0, record.info.col0)
        np.testing.assert_array_equal(patch.info.corners_px, record.info.corners_px)
        np.testing.assert_array_equal(patch.tissue_mask, record.tissue_mask)
        np.testing.assert_array_equal(patch.validity_mask, record.validity_mask)
        np.testing.assert_array_equal(patch.tokens, record.tokens)
        np.testing.assert_array_equal(patch.cls, record.class_token.astype(np.float16))
        assert np.abs(patch.image.astype(int) - record.image).mean() < 5
        dense = np.zeros((6, 16384), int)
        dense[record.gene, record.position] = record.count
        assert dense.sum() == patch.info.total_umi > 0
        np.testing.assert_array_equal(patch.counts().toarray(), dense)
        np.testing.assert_array_equal(patch.counts([4, 0]).toarray(), dense[[4, 0]])
    totals = sum(np.bincount(r.gene, r.count, 6) for r in make_records(3))
    np.testing.assert_array_equal(store.genes.totals, totals)
    assert verify(store) == []
    assert store[-1].index == 2
    with pytest.raises(IndexError):
        store[3]
    assert not {p.name for p in store.path.iterdir()} & {"writer.lock", "job.json"}


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_read_in_workers(store, method):
    expected = checksum_of_all(store)
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(checksum_of_all, [store] * 2)) == [expected] * 2


def test_read_in_threads_that_open_it_all_at_once(store):
    expected = checksum_of_all(store)
    copy = shutil.copytree(store.path, store.path.with_name("B.vst"))  # not yet open here
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda _: checksum_of_all(open_store(copy)), range(16))
        assert list(results) == [expected] * 16


def test_relative_path_survives_a_change_of_directory(store, monkeypatch):
    monkeypatch.chdir(store.path.parent)
    relative = pickle.loads(pickle.dumps(open_store("A.vst")))
    expected = checksum_of_all(store)
    monkeypatch.chdir("/")
    assert checksum_of_all(relative) == expected


def test_a_store_written_anew_is_read_anew(tmp_path):
    old = checksum_of_all(write_store(tmp_path / "A.vst", seed=1))
    shutil.rmtree(tmp_path / "A.vst")
    new = write_store(tmp_path / "A.vst", seed=2)
    assert checksum_of_all(new) != old
    assert verify(new) == []


def test_a_store_that_was_moved_is_read_at_its_new_place(store):
    expected = checksum_of_all(store)
    moved = open_store(store.path.rename(store.path.with_name("moved.vst")))
    assert checksum_of_all(moved) == expected


def alter(path, change):
    """Change a store's records behind its back."""
    with lmdb.open(str(path), map_size=1 << 30) as env, env.begin(write=True) as txn:
        change(txn)
    return path


def altered_copy(store, change):
    copy = store.path.with_name("altered.vst")
    shutil.copytree(store.path, copy)
    return alter(copy, change)


def test_missing_kind_is_refused(store):
    path = altered_copy(store, lambda txn: txn.delete(fmt.key(1, Kind.IMAGE)))
    with pytest.raises(StoreError, match="expected 21 records, found 20"):
        open_store(path)


def test_gap_in_the_indices_is_refused(store):
    def move(txn):
        for kind in Kind:
            payload = txn.pop(fmt.key(1, kind))[8:]
            key = fmt.key(7, kind)
            txn.put(key, fmt.seal(key, payload))

    broken = open_store(altered_copy(store, move))
    with pytest.raises(StoreError, match="patch 1 has no TOKENS record"):
        _ = broken[1].tokens
    assert len(verify(broken)) == 7


def test_a_valid_record_with_forbidden_content_is_refused(store):
    key = fmt.key(2, Kind.COUNTS)
    bad = fmt.pack_counts(np.array([5, 6]), np.array([0, 1]), np.array([1, 1]))  # genes are 0 to 5
    broken = open_store(altered_copy(store, lambda txn: txn.put(key, fmt.seal(key, bad))))
    with pytest.raises(StoreError, match=r"altered.vst: patch 2: .*beyond the gene list.*verify"):
        broken[2].counts()
    assert "patch 2, COUNTS" in verify(broken)[0]


def test_exchanged_records_are_noticed_by_the_manifest(store):
    key = fmt.key(0, Kind.TISSUE_MASK)
    other = fmt.seal(key, bytes(2048))
    exchanged = open_store(altered_copy(store, lambda txn: txn.put(key, other)))
    assert verify(exchanged) == ["the records are not those for which the manifest was written"]


def test_flipped_byte_is_reported(store):
    copy = store.path.with_name("flipped.vst")
    shutil.copytree(store.path, copy)
    data = bytearray((copy / "data.mdb").read_bytes())
    at = data.index(store.record(1, Kind.TOKENS)) + 1000
    data[at] ^= 0x10
    (copy / "data.mdb").write_bytes(data)
    flipped = open_store(copy)
    with pytest.raises(StoreError, match="patch 1: .*checksum does not match"):
        _ = flipped[1].tokens
    seen = []
    faults = verify(flipped, lambda done, total: seen.append((done, total)))
    assert len(faults) == 1
    assert faults[0].startswith("patch 1, TOKENS")
    assert seen == [(1, 3), (2, 3), (3, 3)]


def edit_manifest(path, **changes):
    manifest = json.loads((path / "store.json").read_text("utf-8")) | changes
    (path / "store.json").write_text(json.dumps(manifest), "utf-8")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"format": "virchow_st.store/3"},
            "expected format virchow_st.store/1 or virchow_st.store/2, got",
        ),
        ({"format": None}, "or virchow_st.store/2, got None"),
        ({"n_patches": 4}, "expected 28 records, found 21"),
        ({"genes": {"id": []}}, r"genes\.symbol is missing"),
        ({"genes": {"id": ["a"], "symbol": [], "total": []}}, "lists of equal length"),
        ({"grid": "16"}, "grid: expected a whole number; got '16'"),
    ],
)
def test_manifests_that_do_not_fit_are_refused(store, changes, reason):
    edit_manifest(store.path, **changes)
    with pytest.raises(StoreError, match=reason):
        open_store(store.path)


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_manifest_that_is_no_object_is_refused(store, content):
    (store.path / "store.json").write_text(content, "utf-8")
    with pytest.raises(StoreError, match=r"cannot be read as JSON|expected format"):
        open_store(store.path)


def test_folders_that_are_no_finished_store_are_refused(tmp_path):
    with pytest.raises(StoreError, match="no such store"):
        open_store(tmp_path / "missing.vst")
    with pytest.raises(StoreError, match="not a store"):
        open_store(tmp_path)
    with StoreWriter(tmp_path / "half.vst", JOB) as writer:
        writer.append(make_records(1))
    with pytest.raises(StoreError, match="unfinished; run its `vst extract` again"):
        open_store(tmp_path / "half.vst")


@pytest.mark.parametrize("size", [0, 100, 4096 * 2, None])
def test_data_that_is_not_whole_is_refused(store, size):
    copy = store.path.with_name("short.vst")
    shutil.copytree(store.path, copy)
    if size is None:
        (copy / "data.mdb").unlink()
    else:
        os.truncate(copy / "data.mdb", size)
    with pytest.raises(StoreError, match=r"data.mdb: .*copy"):
        open_store(copy)

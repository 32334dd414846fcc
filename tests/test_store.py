import contextlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import lmdb
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_store import JOB, checksum_of_all, make_manifest, make_records, write_records, write_store

from virchow_st.errors import StoreError
from virchow_st.store import format as fmt
from virchow_st.store.format import Kind, PatchInfo
from virchow_st.store.reader import open_store, verify
from virchow_st.store.tokens import pack_tokens, unpack_tokens
from virchow_st.store.writer import StoreWriter

GOLDEN = Path(__file__).parent / "golden"


def golden(name):
    """Bytes of a golden file: hexadecimal, ``ff*3`` for repeats, comments after ``#``."""
    data = b""
    for line in (GOLDEN / f"{name}.hex").read_text("utf-8").splitlines():
        for word in line.split("#")[0].split():
            byte, _, times = word.partition("*")
            data += bytes.fromhex(byte) * int(times or 1)
    return data


# --- bytes ------------------------------------------------------------------------------------

INFO = PatchInfo(256, 384, np.array([[0, 1], [2, 3], [4, 0.5], [-0.5, 1.5]]), 0.75, 2**32 + 5)
GENE = np.array([3, 3, 3, 65534, 65534])
POSITION = np.array([0, 129, 16383, 7, 8])
COUNT = np.array([1, 3, 4, 2, 70000], np.uint32)
TOKENS = np.array([[[1.0], [-2.0]], [[0.5], [65504.0]]])


def test_golden_key_and_checksum():
    key, payload = fmt.key(258, Kind.COUNTS), golden("counts")
    assert key == golden("key")
    assert fmt.unpack_key(key) == (258, Kind.COUNTS)
    assert fmt.seal(key, payload) == golden("checksum") + payload
    assert fmt.unseal(key, memoryview(golden("checksum") + payload)) == payload
    assert xxhash.xxh3_64(b"").hexdigest() == "2d06800538d394c2"  # the specification's own vector


def test_golden_patch():
    assert fmt.pack_patch(INFO) == golden("patch")
    info = fmt.unpack_patch(memoryview(golden("patch")))
    np.testing.assert_array_equal(info.corners_px, INFO.corners_px)
    assert (info.row0, info.col0, info.tissue_fraction) == (256, 384, 0.75)
    assert info.total_umi == 2**32 + 5


@pytest.mark.parametrize(
    ("name", "positions", "value"),
    [("tissue_mask", [0, 9, 16383], True), ("validity_mask", [0], False)],
)
def test_golden_masks(name, positions, value):
    mask = np.full(16384, not value)
    mask[positions] = value
    mask = mask.reshape(128, 128)
    assert fmt.pack_mask(mask) == golden(name)
    np.testing.assert_array_equal(fmt.unpack_mask(memoryview(golden(name))), mask)


def test_golden_counts():
    assert fmt.pack_counts(GENE, POSITION, COUNT) == golden("counts")
    stored = fmt.unpack_counts(memoryview(golden("counts")), 65535)
    assert stored.genes.tolist() == [3, 65534]
    assert stored.indptr.tolist() == [0, 3, 5]
    assert stored.positions.tolist() == POSITION.tolist()
    assert stored.counts.tolist() == COUNT.tolist()
    assert (stored.positions.dtype, stored.counts.dtype) == (np.uint16, np.uint32)


def test_golden_tokens():
    assert pack_tokens(TOKENS) == golden("tokens")
    np.testing.assert_array_equal(unpack_tokens(golden("tokens"), (2, 2, 1)), TOKENS)
    assert pack_tokens(np.array([0.5, -2, 65504])) == golden("class_token")
    assert unpack_tokens(golden("class_token"), (3,)).tolist() == [0.5, -2, 65504]


def test_golden_image_is_read():
    """Decoded only: which JPEG bytes an encoder writes is its own affair."""
    image = fmt.unpack_image(memoryview(golden("image"))).astype(int)
    assert np.abs(image[32:, :112] - (200, 30, 60)).max() <= 3
    assert np.abs(image[32:, 144:] - (20, 120, 220)).max() <= 3
    assert np.abs(image[:8, :112] - 250).max() <= 3


def test_image_round_trip_keeps_colours_and_shape():
    row, col = np.mgrid[:256, :256]
    image = np.stack([row, col, 255 - row], -1).astype(np.uint8)
    back = fmt.unpack_image(memoryview(fmt.pack_image(image)))
    assert back.shape == image.shape
    assert np.abs(back.astype(int) - image).mean() < 2


@st.composite
def sparse_patches(draw):
    """(gene, position, count) of a patch; counts around every boundary of the format."""
    genes = draw(st.lists(st.integers(0, 65534), max_size=6, unique=True))
    places = st.lists(st.integers(0, 16383), min_size=1, max_size=12, unique=True)
    values = st.sampled_from([1, 2, 3, 4, 5, 255, 65535, 65536, 2**32 - 1])
    entries = [(g, p, draw(values)) for g in sorted(genes) for p in sorted(draw(places))]
    gene, position, count = np.array(entries, np.int64).reshape(-1, 3).T
    return gene, position, count.astype(np.uint32)


@settings(deadline=None)
@given(sparse_patches())
def test_counts_round_trip(patch):
    gene, position, count = patch
    payload = fmt.pack_counts(gene, position, count)
    n_escapes = int((count > 3).sum())
    n = len(gene)
    assert len(payload) == 12 + 4 * len(set(gene)) + 2 * n + 2 * (n % 2) + 8 * n_escapes
    stored = fmt.unpack_counts(memoryview(payload), 65535)
    np.testing.assert_array_equal(np.repeat(stored.genes, np.diff(stored.indptr)), gene)
    np.testing.assert_array_equal(stored.positions, position)
    np.testing.assert_array_equal(stored.counts, count)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_as_counts_are_read_or_refused(payload):
    try:
        stored = fmt.unpack_counts(memoryview(payload), 100)
    except StoreError:
        return
    gene = np.repeat(stored.genes, np.diff(stored.indptr))
    assert fmt.pack_counts(gene, stored.positions, stored.counts) == payload


def test_counts_of_an_empty_patch():
    nothing = np.array([], np.int64)
    payload = fmt.pack_counts(nothing, nothing, nothing.astype(np.uint32))
    assert payload == bytes(12)
    stored = fmt.unpack_counts(memoryview(payload), 10)
    assert (len(stored.genes), len(stored.counts), stored.indptr.tolist()) == (0, 0, [0])


def counts_payload(genes=(1, 2), sizes=(1, 1), entries=(0x4000, 0x8001), pad=(), escapes=()):
    header = [len(genes), len(entries), len(escapes) // 2]
    words = [*genes, *sizes, *entries, *pad]
    parts = np.array(header, "<u4"), np.array(words, "<u2"), np.array(escapes, "<u4")
    return b"".join(part.tobytes() for part in parts)


def test_the_payload_that_the_forbidden_ones_are_made_from_is_read():
    assert fmt.unpack_counts(memoryview(counts_payload()), 3).counts.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "too short for its header"),
        (bytes(11), "too short for its header"),
        (counts_payload() + b"\0", "header says 24 bytes, there are 25"),
        (counts_payload()[:-1], "header says 24 bytes, there are 23"),
        (b"\xff" * 12, "header says"),  # 4 billion entries: refused, not allocated
        (counts_payload(genes=(2, 1)), "out of order"),
        (counts_payload(genes=(1, 1)), "out of order"),
        (counts_payload(genes=(1, 3)), "beyond the gene list"),
        (counts_payload(sizes=(1, 2)), "do not add up"),
        (counts_payload(sizes=(0, 2)), "do not add up"),
        (counts_payload(sizes=(2, 0)), "do not add up"),
        (counts_payload(entries=(0x4000, 0x0001)), "escapes do not match"),
        (counts_payload(escapes=(0, 9)), "escapes do not match"),
        (counts_payload(entries=(0x4000, 0x0001), escapes=(0, 9)), "escapes do not match"),
        (counts_payload(entries=(0x4000, 0x0001), escapes=(7, 9)), "escapes do not match"),
        (counts_payload(entries=(0, 0), escapes=(1, 9, 0, 9)), "escapes do not match"),
        (counts_payload(entries=(0x4000, 0x0001), escapes=(1, 3)), "count below 4"),
        (counts_payload(genes=(1,), sizes=(2,), entries=(0x4001, 0x4000)), "positions"),
        (counts_payload(genes=(1,), sizes=(2,), entries=(0x4001, 0x8001)), "positions"),
        (counts_payload(genes=(1,), sizes=(1,), entries=(0x4001,), pad=(1,)), "padding"),
    ],
)
def test_forbidden_counts_are_refused(payload, reason):
    with pytest.raises(StoreError, match=reason):
        fmt.unpack_counts(memoryview(payload), 3)


@pytest.mark.parametrize(
    ("unpack", "payload", "reason"),
    [
        (fmt.unpack_patch, bytes(87), "expected 88 bytes, got 87"),
        (fmt.unpack_patch, bytes(89), "expected 88 bytes, got 89"),
        (fmt.unpack_patch, bytes(76) + b"\1" + bytes(11), "expected zero at offset 76, got 1"),
        (fmt.unpack_mask, bytes(2047), "expected 2048 bytes, got 2047"),
        (fmt.unpack_mask, bytes(2049), "expected 2048 bytes, got 2049"),
        (fmt.unpack_image, b"", "expected a JPEG of 256 x 256 px"),
        (fmt.unpack_image, b"no picture", "expected a JPEG of 256 x 256 px"),
        (
            fmt.unpack_image,
            fmt.pack_image(np.zeros((8, 8, 3), np.uint8)),
            "expected a JPEG of 256 x 256 px",
        ),
        (lambda b: unpack_tokens(b, (2, 2, 3)), bytes(22), "expected 24 bytes, got 22"),
        (fmt.unpack_key, bytes(4), "unknown record key"),
        (fmt.unpack_key, b"\0\0\0\0\x08", "unknown record key"),
        (lambda b: fmt.unseal(b"12345", b), b"1234567", "too short for a checksum"),
    ],
)
def test_payloads_of_wrong_length_are_refused(unpack, payload, reason):
    with pytest.raises(StoreError, match=reason):
        unpack(memoryview(payload))


@pytest.mark.parametrize("value", [np.nan, np.inf, 65520.0])
def test_tokens_that_float16_cannot_hold_are_refused(value):
    with pytest.raises(StoreError, match="not finite in float16"):
        pack_tokens(np.array([1.0, value]))


def test_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"expected shape \(128, 128\), got \(64, 256\)"):
        fmt.pack_mask(np.zeros((64, 256), bool))


def test_every_flipped_bit_is_noticed():
    key = fmt.key(1, Kind.COUNTS)
    value = bytearray(fmt.seal(key, golden("counts")))
    for i in range(len(value)):
        for bit in range(8):
            value[i] ^= 1 << bit
            with pytest.raises(StoreError, match="checksum does not match"):
                fmt.unseal(key, memoryview(bytes(value)))
            value[i] ^= 1 << bit
    with pytest.raises(StoreError, match="checksum"):  # a record under another's key
        fmt.unseal(fmt.key(2, Kind.COUNTS), memoryview(bytes(value)))


def test_bytes_per_nonzero_on_a_realistic_patch():
    """18,085 genes, 9 UMIs a 2 µm bin, expression log-normal over genes as on a colon slide."""
    rng = np.random.default_rng(0)
    share = rng.lognormal(0, 2, 18_085)
    rates = 9 * share / share.sum()
    n = rng.poisson(rates * 16384)
    gene = np.repeat(np.arange(18_085), n)
    cells, count = np.unique(gene * 16384 + rng.integers(0, 16384, len(gene)), return_counts=True)
    payload = fmt.pack_counts(cells // 16384, cells % 16384, count.astype(np.uint32))
    assert len(cells) > 100_000
    assert len(payload) / len(cells) <= 2.5


# --- stores ------------------------------------------------------------------------------------


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
    bad = counts_payload(genes=(5, 6))  # the store has genes 0 to 5
    broken = open_store(altered_copy(store, lambda txn: txn.put(key, fmt.seal(key, bad))))
    with pytest.raises(StoreError, match=r"altered.vst: patch 2: .*beyond the gene list.*verify"):
        broken[2].counts()
    assert "patch 2, COUNTS" in verify(broken)[0]


def test_exchanged_records_are_noticed_by_the_manifest(store):
    key = fmt.key(0, Kind.TISSUE_MASK)
    other = fmt.seal(key, bytes(2048))
    exchanged = open_store(altered_copy(store, lambda txn: txn.put(key, other)))
    assert verify(exchanged) == ["the records are not those the manifest was written for"]


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
        ({"format": "virchow_st.store/2"}, "expected format virchow_st.store/1, got"),
        ({"format": None}, "expected format virchow_st.store/1, got None"),
        ({"n_patches": 4}, "expected 28 records, found 21"),
        ({"genes": {"id": []}}, "expected id, symbol and total"),
        ({"genes": {"id": ["a"], "symbol": [], "total": []}}, "lists of equal length"),
        ({"grid": "16"}, "grid is missing or not of type int"),
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


# --- writing -----------------------------------------------------------------------------------


def all_records(path):
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        return list(txn.cursor())


def append_and_fail(path, records):
    with contextlib.suppress(KeyboardInterrupt), StoreWriter(path, JOB) as writer:
        writer.append(records)
        raise KeyboardInterrupt


def append_and_die(path, records):
    writer = StoreWriter(path, JOB)
    writer.append(records)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("way", ["error", "killed"])
def test_resumed_store_is_the_uninterrupted_one_byte_for_byte(tmp_path, way):
    records = make_records(5)
    path, whole = tmp_path / "resumed.vst", tmp_path / "whole.vst"
    with StoreWriter(whole, JOB) as writer:
        writer.append(records)
        writer.finish(make_manifest(records, 6))
    if way == "error":
        append_and_fail(path, records[:2])
    else:
        process = multiprocessing.get_context("fork").Process(
            target=append_and_die, args=(path, records[:2])
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert (path / "writer.lock").exists()
    with StoreWriter(path, JOB) as writer:
        assert writer.next_index == 2
        writer.append(records[2:3])
        writer.append(records[3:])
        writer.finish(make_manifest(records, 6))
    assert len(all_records(path)) == 35
    assert all_records(path) == all_records(whole)
    assert (path / "store.json").read_bytes() == (whole / "store.json").read_bytes()
    assert {p.name for p in path.iterdir()} == {"data.mdb", "store.json"}
    assert verify(open_store(path)) == []


def test_append_is_all_or_nothing(tmp_path):
    good, bad = make_records(2)
    bad.tokens[0, 0, 0] = np.inf
    with StoreWriter(tmp_path / "A.vst", JOB) as writer:
        writer.append([good])
        with pytest.raises(StoreError, match="not finite"):
            writer.append([good, bad])
        assert writer.next_index == 1
    with StoreWriter(tmp_path / "A.vst", JOB) as writer:
        assert writer.next_index == 1


def test_another_job_is_refused(tmp_path):
    with StoreWriter(tmp_path / "A.vst", JOB) as writer:
        writer.append(make_records(1))
    other = JOB | {"inputs": {"seed": 1}}
    with pytest.raises(StoreError, match="begun with other inputs or options"):
        StoreWriter(tmp_path / "A.vst", other)
    (tmp_path / "A.vst" / "job.json").write_text("{", "utf-8")
    with pytest.raises(StoreError, match=r"job.json: cannot be read as JSON"):
        StoreWriter(tmp_path / "A.vst", JOB)


def test_second_writer_is_refused_by_name(tmp_path):
    path = tmp_path / "A.vst"
    with StoreWriter(path, JOB) as writer:
        with pytest.raises(StoreError, match=f"being written by process {os.getpid()} on"):
            StoreWriter(path, JOB)
        writer.append(make_records(1))  # the first is none the worse for it
        assert (path / "writer.lock").exists()
    with StoreWriter(path, JOB) as writer:
        assert writer.next_index == 1


def test_a_lock_file_removed_while_waiting_is_not_held(tmp_path, monkeypatch):
    """A writer may end, and remove its lock file, just after another has opened that file."""
    import fcntl

    import virchow_st.store.writer as module

    path = tmp_path / "A.vst"
    real = fcntl.flock
    calls = []

    def flock(file, how):
        calls.append(how)
        if len(calls) == 1:
            (path / "writer.lock").unlink()
        real(file, how)

    monkeypatch.setattr(module.fcntl, "flock", flock)
    with StoreWriter(path, JOB):
        assert len(calls) == 2
        with pytest.raises(StoreError, match="being written by"):
            StoreWriter(path, JOB)


def test_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(StoreError, match="expected a new folder or an unfinished store"):
        StoreWriter(tmp_path, JOB)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.docx"]


def test_finished_store_is_never_written_again(store):
    (store.path / "job.json").write_text(json.dumps(JOB))  # killed before it was removed
    before = all_records(shutil.copytree(store.path, store.path.with_name("copy.vst")))
    with pytest.raises(StoreError, match="is finished"):
        StoreWriter(store.path, JOB)
    assert open_store(store.path)
    assert len(before) == 21


def test_map_grows_beyond_its_first_size(tmp_path, monkeypatch):
    monkeypatch.setattr("virchow_st.store.writer._MAP_STEP", 1 << 21)
    records = make_records(12, dim=512)  # 256 KiB of tokens each
    store = write_records(tmp_path / "A.vst", records, 6)
    assert (store.path / "data.mdb").stat().st_size > 1 << 21
    assert verify(store) == []


def test_checksums_are_compared_once_by_an_opened_store(store, monkeypatch):
    digested = []
    monkeypatch.setattr(
        fmt, "digest", lambda *a, real=fmt.digest: digested.append(a[0]) or real(*a)
    )
    opened = open_store(store.path)
    first = opened[0].tokens
    np.testing.assert_array_equal(opened[0].tokens, first)
    assert digested == [fmt.key(0, Kind.TOKENS)]
    assert open_store(store.path)[0].tokens is not None
    assert verify(opened) == []
    assert len(digested) >= 2 + len(opened) * len(Kind)  # a new opening, and all of them to verify

"""The writer: resumed to the same bytes, all or nothing, one at a time."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal

import lmdb
import numpy as np
import pytest
from tiny_store import JOB, make_manifest, make_records, write_records, write_store

from virchow_st.errors import StoreError
from virchow_st.runtime.lock import BusyError
from virchow_st.store import format as fmt
from virchow_st.store.format import Kind
from virchow_st.store.reader import open_store, verify
from virchow_st.store.writer import StoreWriter


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "A.vst", n_patches=3)


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
        with pytest.raises(BusyError, match=f"being written by process {os.getpid()} on"):
            StoreWriter(path, JOB)
        writer.append(make_records(1))  # the first is none the worse for it
        assert (path / "writer.lock").exists()
    with StoreWriter(path, JOB) as writer:
        assert writer.next_index == 1


def test_a_lock_file_removed_while_waiting_is_not_held(tmp_path, monkeypatch):
    """A writer may end, and remove its lock file, just after another has opened that file."""
    import fcntl

    path = tmp_path / "A.vst"
    real = fcntl.flock
    calls = []

    def flock(file, how):
        calls.append(how)
        if len(calls) == 1:
            (path / "writer.lock").unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with StoreWriter(path, JOB):
        assert len(calls) == 2
        with pytest.raises(BusyError, match="being written by"):
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
    np.testing.assert_array_equal(open_store(store.path)[0].tokens, first)
    assert digested == [fmt.key(0, Kind.TOKENS)] * 2  # a new opening compares anew
    assert verify(opened) == []
    everything = {fmt.key(i, kind) for i in range(len(opened)) for kind in Kind}
    assert set(digested[2:]) == everything

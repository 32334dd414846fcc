"""Stores on a disk that is full, read-only, or without the right to write."""

import contextlib
import errno
import os
import resource
import shutil
import subprocess

import pytest
from killed_writer import BATCH, N_PATCHES
from tiny_store import JOB, checksum_of_all, make_manifest, make_records, write_store
from written_store import PAGE, all_records, assert_is, assert_nothing_half_looks_whole, write

from virchow_st.errors import StoreError
from virchow_st.store import writer as writer_module
from virchow_st.store.format import Kind
from virchow_st.store.reader import open_store, verify
from virchow_st.store.writer import StoreWriter


def limit_files(n_bytes):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    "share", [0, 10, PAGE, 2 * PAGE, 3 * PAGE, 0.2, 0.7, 0.99], ids=lambda s: f"limit-{s}"
)
def test_limit_on_files_is_named_and_nothing_committed_is_lost(tmp_path, whole, share):
    path = tmp_path / "A.vst"
    size = (whole / "data.mdb").stat().st_size
    limit = share if share > 1 or not share else int(share * size)
    done = write(path, preexec_fn=limit_files(limit))
    assert done.returncode == 1, done  # not a signal
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"virchow_st.errors.StoreError: {path}: ")
    n_records = assert_nothing_half_looks_whole(path, whole)
    assert n_records > 0.5 * limit / size * len(all_records(whole)) - 3 * BATCH * len(Kind)
    assert f"{n_records // len(Kind)} patches are safe" in last or not n_records
    assert write(path).returncode == 0
    assert_is(path, whole)


@contextlib.contextmanager
def mounted(folder, options):
    """A file system in memory; skips where mounting is not permitted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def disk_sizes(step):
    """From none to enough, bytes; finest where the manifest is written."""
    enough = 700_000
    return [PAGE, 2 * PAGE, 4 * PAGE, *range(6 * PAGE, enough, step)]


@pytest.mark.parametrize("step", [400_000, pytest.param(16_384, marks=pytest.mark.slow)])
def test_full_disk_is_named_and_nothing_committed_is_lost(tmp_path, whole, step):
    size = (whole / "data.mdb").stat().st_size
    near_the_end = [size + PAGE * n for n in (0, 2)]
    with mounted(tmp_path / "disk", "size=1m") as disk:
        messages = set()
        for room in [*disk_sizes(step), *near_the_end]:
            remount(disk, f"size={room}")
            path = disk / "A.vst"
            done = write(path)
            assert done.returncode in (0, 1), done  # not a signal
            if done.returncode:
                last = done.stderr.splitlines()[-1]
                assert last.startswith(f"virchow_st.errors.StoreError: {path}: "), done.stderr
                messages.add(last.partition(" (")[0].partition("A.vst: ")[2])
                assert_nothing_half_looks_whole(path, whole)
                remount(disk, "size=4m")
                assert write(path).returncode == 0
            assert_is(path, whole)
            shutil.rmtree(path)
        assert {"cannot be opened for writing", "writing failed"} <= messages


def test_disk_full_at_the_manifest(tmp_path, monkeypatch, whole):
    path, records = tmp_path / "A.vst", make_records(N_PATCHES, grid=4, dim=512)
    manifest = make_manifest(records, 6)

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with StoreWriter(path, JOB) as writer:
        writer.append(records)
        monkeypatch.setattr(writer_module, "write_json", fail)
        with pytest.raises(StoreError, match=r"No space left.*all 12 patches are safe"):
            writer.finish(manifest)
    monkeypatch.undo()
    with StoreWriter(path, JOB) as writer:
        writer.finish(manifest)
    assert_is(path, whole)


def test_read_only_disk_serves_readers_and_refuses_writers(tmp_path):
    with mounted(tmp_path / "disk", "size=8m") as disk:
        store = write_store(disk / "A.vst")
        expected = checksum_of_all(store)
        with StoreWriter(disk / "half.vst", JOB) as writer:
            writer.append(make_records(1))
        remount(disk, "ro")
        store = open_store(disk / "A.vst")
        assert checksum_of_all(store) == expected
        assert verify(store) == []
        for name in ("new.vst", "half.vst"):
            with pytest.raises(StoreError, match=rf"{name}: cannot be written \(Read-only"):
                StoreWriter(disk / name, JOB)
        del store


def test_folder_without_the_right_to_write_is_refused(tmp_path, monkeypatch):
    """Rights do not bind root, so the refusal is put in the kernel's mouth."""

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(
        StoreError, match=r"cannot be written \(Permission denied\); get the rights"
    ):
        StoreWriter(tmp_path / "A.vst", JOB)

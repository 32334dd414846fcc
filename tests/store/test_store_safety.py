"""What happens to a store when the process, the disk or the file fails."""

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import lmdb
import pytest
from damaged_reader import FINE
from killed_writer import BATCH, DIED, N_PATCHES
from tiny_store import JOB, checksum_of_all, make_manifest, make_records, write_store

from virchow_st.errors import StoreError
from virchow_st.store import writer as writer_module
from virchow_st.store.format import Kind
from virchow_st.store.pages import check_for_writing, find_records
from virchow_st.store.reader import open_store, verify
from virchow_st.store.writer import StoreWriter

HERE = Path(__file__).parents[1] / "support"
PAGE = 4096


def all_records(path):
    """Every key and value, as LMDB itself reads them."""
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        return list(txn.cursor())


def write(path, *options, **keywords):
    """Run the writer to its end; returns the finished process."""
    command = [sys.executable, HERE / "killed_writer.py", path, *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **keywords)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The store that nothing happened to."""
    path = tmp_path_factory.mktemp("whole") / "A.vst"
    assert write(path).returncode == 0
    return path


def assert_is(path, whole):
    assert all_records(path) == all_records(whole)
    assert (path / "store.json").read_bytes() == (whole / "store.json").read_bytes()
    assert {p.name for p in path.iterdir()} == {"data.mdb", "store.json"}
    assert verify(open_store(path)) == []


def assert_nothing_half_looks_whole(path, whole):
    """Whole, or refused by readers; and what was committed is what the whole store begins with."""
    if (path / "store.json").exists():
        assert checksum_of_all(open_store(path)) == checksum_of_all(open_store(whole))
        return len(all_records(whole))
    with pytest.raises(StoreError, match="unfinished|not a store|no such store"):
        open_store(path)
    data = path / "data.mdb"
    records = all_records(path) if data.exists() and data.stat().st_size >= 2 * PAGE else []
    assert len(records) % (BATCH * len(Kind)) == 0
    assert records == all_records(whole)[: len(records)]
    return len(records)


# --- killed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_kills", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed(tmp_path, whole, n_kills):
    rng = random.Random(n_kills)
    n_killed = n_stores = 0
    stopped_at = set()
    while n_killed < n_kills:
        path = tmp_path / f"{n_stores}.vst"
        n_stores += 1
        while not (path / "store.json").exists() and n_killed < n_kills:
            command = [sys.executable, HERE / "killed_writer.py", path]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                for _ in range(rng.randrange(2 + N_PATCHES // BATCH)):
                    process.stdout.readline()  # "ready", then a line a commit
                time.sleep(rng.uniform(0, 0.02))  # into the next commit, or just before it
                process.kill()
            n_killed += process.returncode == -signal.SIGKILL
            stopped_at.add(assert_nothing_half_looks_whole(path, whole))
        assert write(path).returncode == 0
        assert_is(path, whole)
    assert len(stopped_at) > 2


@pytest.mark.parametrize(
    ("function", "nth", "when", "is_finished"),
    [
        ("fsync", 1, "before", False),  # of job.json.part
        ("replace", 1, "before", False),  # job.json.part → job.json
        ("replace", 1, "after", False),
        ("fsync", 3, "before", False),  # of the folder, data.mdb new in it
        ("fsync", 4, "before", False),  # of store.json.part, records synced
        ("replace", 2, "before", False),  # store.json.part → store.json
        ("replace", 2, "after", True),
        ("unlink", 1, "before", True),  # of job.json
        ("unlink", 1, "after", True),
        ("unlink", 2, "before", True),  # of writer.lock
    ],
)
def test_died_between_two_steps(tmp_path, whole, function, nth, when, is_finished):
    path = tmp_path / "A.vst"
    assert write(path, function, nth, when).returncode == DIED
    assert (path / "store.json").exists() == is_finished
    assert_nothing_half_looks_whole(path, whole)
    assert write(path).returncode == 0
    assert_is(path, whole)


def test_killed_before_the_first_byte_of_data(tmp_path, whole):
    path = tmp_path / "A.vst"
    assert write(path, "replace", 1, "after").returncode == DIED
    (path / "data.mdb").touch()
    assert write(path).returncode == 0
    assert_is(path, whole)


# --- damage ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    """A store with branch pages, free pages, and values within and outside the leaves."""
    path = tmp_path_factory.mktemp("victim") / "A.vst"
    records = make_records(24, grid=4, rate=0.01)
    with StoreWriter(path, JOB) as writer:
        for start in range(0, 24, 6):
            writer.append(records[start : start + 6])
        writer.finish(make_manifest(records, 6))
    return path


def page_numbers(data, flags):
    """Pages of a kind, from their headers; pages of values may look like anything."""
    headers = (struct.unpack_from("<QHH", data, at) for at in range(0, len(data), PAGE))
    return [i for i, (number, _, f) in enumerate(headers) if (number, f) == (i, flags)]


def damage(victim, folder, n):
    """``n`` copies, each with a flipped bit: half of them in pages that point."""
    data = (victim / "data.mdb").read_bytes()
    rng = random.Random(n)
    # headers, branches, leaves, values, values; in a page that points, its two written ends
    regions = [page_numbers(data, flags) for flags in (8, 1, 2, 4)] + [range(len(data) // PAGE)]
    assert all(regions)
    for i in range(n):
        kind = i % len(regions)
        ends = [range(200), range(3000, PAGE)] if kind in (1, 2) else [range(200), range(PAGE)]
        at = rng.choice(regions[kind]) * PAGE + rng.choice(rng.choice(ends))
        changed = bytearray(data)
        changed[at] ^= 1 << rng.randrange(8)
        yield copy_with(victim, folder / f"{i}.vst", changed)


def copy_with(victim, path, data):
    path.mkdir()
    shutil.copy(victim / "store.json", path)
    (path / "data.mdb").write_bytes(data)
    return path


def judge(victim, paths):
    """What `damaged_reader` says of each store, in their order."""
    command = [sys.executable, HERE / "damaged_reader.py", victim, *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert len(words) == len(paths)
    assert set(words) <= set(FINE), (Counter(words), done.stderr)
    return words


@pytest.mark.parametrize("n", [30, pytest.param(600, marks=pytest.mark.slow)])
def test_flipped_bits_never_crash_a_reader(tmp_path, victim, n):
    words = Counter(judge(victim, list(damage(victim, tmp_path, n))))
    assert words["named"] > n / 10
    assert words["refused"] > n / 50 or n < 100


def test_file_cut_short_anywhere_is_refused(tmp_path, victim):
    data = (victim / "data.mdb").read_bytes()
    rng = random.Random(0)
    sizes = [0, 1, 100, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 3 * PAGE, len(data) - PAGE]
    sizes += [len(data) - 1, len(data) - PAGE // 2]
    sizes += [PAGE * rng.randrange(len(data) // PAGE) for _ in range(10)]
    sizes += [rng.randrange(len(data)) for _ in range(10)]
    paths = [copy_with(victim, tmp_path / f"{i}.vst", data[:n]) for i, n in enumerate(sizes)]
    assert judge(victim, paths) == ["refused"] * len(sizes)


def test_zeroed_pages_are_noticed(tmp_path, victim):
    """What a power cut leaves of pages that were never written.

    Only a page that the last commit does not use, such as an older root, may be zero unnoticed.
    """
    data = (victim / "data.mdb").read_bytes()
    metas, trees = [0, 1], [*page_numbers(data, 1), *page_numbers(data, 2)]
    values = random.Random(0).sample(page_numbers(data, 4), 4)
    paths = []
    for number in [*metas, *trees, *values]:
        changed = data[: number * PAGE] + bytes(PAGE) + data[(number + 1) * PAGE :]
        paths.append(copy_with(victim, tmp_path / f"{number}.vst", changed))
    words = judge(victim, paths)
    assert words[: len(metas)] == ["refused"] * len(metas)
    assert words[-len(values) :] == ["named"] * len(values)
    with lmdb.open(str(victim), readonly=True, lock=False) as env:
        stat = env.stat()
    n_unused = len(trees) - stat["branch_pages"] - stat["leaf_pages"]
    assert words[len(metas) : -len(values)].count("right") == n_unused


@pytest.mark.parametrize("n", [400, pytest.param(8000, marks=pytest.mark.slow)])
def test_damaged_pages_give_places_within_the_file_or_an_error(tmp_path, victim, n):
    data = (victim / "data.mdb").read_bytes()
    pages = [*page_numbers(data, 8), *page_numbers(data, 1), *page_numbers(data, 2)]
    rng = random.Random(n)
    n_refused = 0
    for _ in range(n):
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 4])):
            at = rng.choice(pages) * PAGE + rng.choice([rng.randrange(160), rng.randrange(PAGE)])
            changed[at] = rng.choice([0, 1, 0x7F, 0xFF, changed[at] ^ 1 << rng.randrange(8)])
        (tmp_path / "data.mdb").write_bytes(changed)
        fd = os.open(tmp_path / "data.mdb", os.O_RDONLY)
        try:
            places = find_records(fd, tmp_path)
        except StoreError:
            n_refused += 1
        else:
            assert list(places) == sorted(places)
            assert all(0 <= p.offset <= p.offset + p.size <= len(data) for p in places.values())
        finally:
            os.close(fd)
        with contextlib.suppress(StoreError):
            check_for_writing(tmp_path / "data.mdb")
    assert n_refused > n / 10


def test_places_are_those_that_lmdb_finds(victim):
    data = (victim / "data.mdb").read_bytes()
    fd = os.open(victim / "data.mdb", os.O_RDONLY)
    places = find_records(fd, victim)
    os.close(fd)
    found = [(key, data[p.offset : p.offset + p.size]) for key, p in places.items()]
    assert found == all_records(victim)


def test_file_cut_short_while_it_is_open(tmp_path, victim):
    """A mapped file would kill the process here."""
    store = open_store(copy_with(victim, tmp_path / "A.vst", (victim / "data.mdb").read_bytes()))
    assert store[0].tokens.any()
    os.truncate(store.path / "data.mdb", 2 * PAGE)
    with pytest.raises(StoreError, match=r"patch 3: .*data.mdb: expected .* is truncated"):
        _ = store[3].tokens
    assert len(verify(store)) == 7 * 24


def test_a_disk_that_cannot_read_is_named(monkeypatch, victim):
    store = open_store(victim)

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    faults = verify(store)
    assert len(faults) == 7 * 24
    assert "data.mdb: cannot be read (Input/output error)" in faults[0]


@pytest.mark.parametrize("size", [1, PAGE, 2 * PAGE, -PAGE, -1])
def test_unfinished_store_cut_short_is_not_resumed(tmp_path, size):
    path = tmp_path / "A.vst"
    with StoreWriter(path, JOB) as writer:
        writer.append(make_records(2, grid=4))
    os.truncate(path / "data.mdb", size if size > 0 else (path / "data.mdb").stat().st_size + size)
    with pytest.raises(StoreError, match=r"data.mdb: damaged .*delete the folder and run its"):
        StoreWriter(path, JOB)
    assert not (path / "writer.lock").exists()


def test_free_pages_that_are_in_use_are_not_written_over(tmp_path, victim):
    """LMDB would believe the list and put the next patch on top of an older one."""
    path = copy_with(victim, tmp_path / "A.vst", (victim / "data.mdb").read_bytes())
    (path / "store.json").unlink()
    (path / "job.json").write_text(json.dumps(JOB))
    with lmdb.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as txn:
        txn.put(b"\xff" * 5, b"")  # a commit more, so that there are free pages for certain
        txn.delete(b"\xff" * 5)
    data = bytearray((path / "data.mdb").read_bytes())
    check_for_writing(path / "data.mdb")
    newest = max((0, PAGE), key=lambda at: struct.unpack_from("<Q", data, at + 144)[0])
    root = struct.unpack_from("<Q", data, newest + 16 + 24 + 40)[0]
    node = root * PAGE + struct.unpack_from("<H", data, root * PAGE + 16)[0]
    listed = node + 8 + 8 + 8  # behind the node's header, its key, and the count
    struct.pack_into("<Q", data, listed, page_numbers(data, 4)[-1])
    (path / "data.mdb").write_bytes(data)
    with pytest.raises(StoreError, match="in use is listed as free|out of order"):
        StoreWriter(path, JOB)


# --- a full disk and one that is read-only -----------------------------------------------------


def limit_files(n_bytes):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


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

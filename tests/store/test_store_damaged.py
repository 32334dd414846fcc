"""What a reader and a writer find when the store's file is damaged."""

import contextlib
import errno
import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections import Counter

import lmdb
import pytest
from damaged_reader import FINE
from tiny_store import JOB, make_manifest, make_records
from written_store import PAGE, SUPPORT, all_records

from virchow_st.errors import StoreError
from virchow_st.store.pages import check_for_writing, find_records
from virchow_st.store.reader import open_store, verify
from virchow_st.store.writer import StoreWriter


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
    command = [sys.executable, SUPPORT / "damaged_reader.py", victim, *paths]
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

"""Stores written by a process of their own, and how far an interrupted one has come."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import pytest
from killed_writer import BATCH
from tiny_store import checksum_of_all

from virchow_st.errors import StoreError
from virchow_st.store.format import Kind
from virchow_st.store.reader import open_store, verify

SUPPORT = Path(__file__).parent
PAGE = 4096


def all_records(path: Path) -> list[tuple[bytes, bytes]]:
    """Every key and value, as LMDB itself reads them."""
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        return list(txn.cursor())


def write(path: Path, *options: object, **keywords: Any) -> subprocess.CompletedProcess[str]:
    """Run the writer to its end; returns the finished process."""
    command = [sys.executable, str(SUPPORT / "killed_writer.py"), str(path), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **keywords)


def assert_is(path: Path, whole: Path) -> None:
    """Check that a store is finished and equals the whole one, with nothing beside it."""
    assert all_records(path) == all_records(whole)
    assert (path / "store.json").read_bytes() == (whole / "store.json").read_bytes()
    assert {p.name for p in path.iterdir()} == {"data.mdb", "store.json"}
    assert verify(open_store(path)) == []


def assert_nothing_half_looks_whole(path: Path, whole: Path) -> int:
    """Check that a store is whole, or that readers refuse it; returns its number of records.

    What was committed to an unfinished store is what the whole one begins with.
    """
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

"""Claims on items: one holder at a time, none lost for good."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from claim_race import claimed_by_one
from half_dead import end, half_dead

from virchow_st.cohort.lease import Leases
from virchow_st.runtime.lock import BusyError, locked


def test_one_of_many_gets_an_item(tmp_path: Path) -> None:
    all_leases = [Leases(tmp_path, 60) for _ in range(8)]
    held = claimed_by_one(all_leases, "a")
    other = all_leases[0]
    assert other.latest() == {"a": 1}
    assert not other.is_free("a", 1)
    assert other.is_free("b", 0)
    held.release()
    assert other.is_free("a", 1)
    second = other.claim("a", 1)
    assert second is not None
    assert (second.attempt, second.lost) == (2, 0)  # it was given back
    assert held.renew() is False
    assert held.is_lost
    second.remove()
    assert os.listdir(tmp_path) == []
    assert second.renew() is False  # it is settled


def elsewhere(path: Path) -> None:
    """Let a claim be that of a process on another machine, of which nothing can be known."""
    path.write_text(path.read_text().replace(f"process {os.getpid()} on ", "process 1 on not-"))


def test_a_claim_lapses_when_it_is_not_renewed(tmp_path: Path) -> None:
    holder, other = Leases(tmp_path, 0.4), Leases(tmp_path, 60)
    lease = holder.claim("a", 0)
    assert lease is not None
    lease.begin()
    elsewhere(tmp_path / "a@1")
    begun = time.monotonic()
    while time.monotonic() - begun < 1.2:
        assert not other.is_free("a", 1)
        assert lease.renew()
        time.sleep(0.05)
    begun = time.monotonic()
    while not other.is_free("a", 1):
        time.sleep(0.02)
    assert time.monotonic() - begun > 0.3  # since it was seen last
    assert other.was_lost("a", 1)
    taken = other.claim("a", 1)
    assert taken is not None
    assert (taken.attempt, taken.lost, taken.deaths) == (2, 1, 1)
    assert not lease.renew()


DIES = """
import os, sys
from pathlib import Path
from virchow_st.cohort.lease import Leases
lease = Leases(Path(sys.argv[1]), 60).claim("a", 0)
print("claimed", flush=True)
sys.stdin.read()
os.kill(os.getpid(), 9)
"""


def test_a_claim_of_a_dead_process_returns_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", DIES, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"claimed\n"
    leases = Leases(tmp_path, 60)
    assert not leases.is_free("a", 1)
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but nobody has asked
    assert leases.is_free("a", 1)
    process.wait()
    process.stdout.close()
    assert leases.is_free("a", 1)
    lease = leases.claim("a", 1)
    assert lease is not None
    assert (lease.lost, lease.deaths) == (1, 0)  # its turn had not come


def test_a_process_whose_threads_still_end_keeps_its_claim(tmp_path: Path) -> None:
    """Else the next worker finds the item's output locked by a process that is taken for dead."""
    claims = tmp_path / "claims"
    claims.mkdir()
    process = half_dead(claims, "a", tmp_path / "a.zarr")
    leases = Leases(claims, 60)
    try:
        assert not leases.is_free("a", 1)
        with pytest.raises(BusyError), locked(tmp_path / "a.zarr"):
            pytest.fail("both hold it")
    finally:
        end(process)
    assert leases.is_free("a", 1)
    with locked(tmp_path / "a.zarr"):
        pass


def test_a_claim_whose_writer_died_in_it_lapses_too(tmp_path: Path) -> None:
    (tmp_path / "a@1").touch()
    leases = Leases(tmp_path, 0.2)
    assert not leases.is_free("a", 1)
    time.sleep(0.3)
    assert leases.is_free("a", 1)

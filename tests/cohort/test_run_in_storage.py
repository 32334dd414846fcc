"""A list in object storage: each item done once, whoever is killed, whatever the storage does."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cohort_job import ended, expected, make, run_script, times
from s3_double import S3, Request

from virchow_st.cloud.place import Url
from virchow_st.cohort import run_cohort
from virchow_st.cohort.on_local import LocalExecutor
from virchow_st.errors import StorageError
from virchow_st.runtime.lock import is_dead
from virchow_st.runtime.progress import Recording

STATE = Url("s3://bucket/lists/slides.cohort")
FAILS = {"s1": "refuse", "s2": "crash"}


def check_whole(s3: S3, folder: Path, failed: set[str], n: int, rounds: int = 2000) -> None:
    """As of a list on disk: every item with its bytes, the table, and nothing left of claims."""
    keys = [f"s{i}" for i in range(n)]
    good = set(keys) - failed
    assert {p.name for p in (folder / "out").iterdir() if p.name[0] != "."} == good
    for key in good:
        assert (folder / "out" / key).read_bytes() == expected(key, rounds)
    there = s3.below("lists/slides.cohort")
    assert there.keys() == {"cohort.jsonl", *(f"marks/{key}.json" for key in keys)}
    lines = [json.loads(line) for line in there["cohort.jsonl"].decode().splitlines()]
    assert [line["item"] for line in lines] == keys
    assert {line["item"] for line in lines if line["state"] == "failed"} == failed
    assert all(line["state"] == "done" for line in lines if line["item"] in good)


def now_and_then(seed: int) -> Callable[[Request], str]:
    """A fault of the first request of a method and key, at random, or none."""
    moments, seen = random.Random(seed), set[tuple[str, str, str]]()

    def fault(request: Request) -> str:
        place = request.method, request.key, request.query.get("prefix", "")
        is_new = place not in seen
        seen.add(place)
        return moments.choice(["500", "503", "lost", "reset", "", ""]) if is_new else ""

    return fault


def test_two_calls_at_once_share_the_items(s3: S3, tmp_path: Path) -> None:
    job, items = make(tmp_path, 12, **FAILS)
    s3.fault = now_and_then(251)
    found: dict[int, Any] = {}

    def call(number: int) -> None:
        with ThreadPoolExecutor(2) as pool:
            found[number] = run_cohort(items, job, pool, STATE, n_workers=2)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    check_whole(s3, tmp_path, {"s1", "s2"}, 12)
    assert set(times(tmp_path, "finished").values()) == {1}
    assert [o.state for o in found[0]] == [o.state for o in found[1]]
    # Another call does what failed again, and no other.
    run_cohort(items, job, None, STATE)
    check_whole(s3, tmp_path, {"s1", "s2"}, 12)
    begun = times(tmp_path, "begun")
    assert {key for key, n in begun.items() if n == 1} == {
        f"s{i}" for i in range(12)
    } - FAILS.keys()
    # What no longer holds is done anew.
    (tmp_path / "out" / "s5").unlink()
    run_cohort(items, job, None, STATE)
    assert {key: n for key, n in times(tmp_path, "finished").items() if n > 1} == {"s5": 2}


def test_a_worker_that_is_killed_stops_no_other(s3: S3, tmp_path: Path) -> None:
    job, items = make(tmp_path, 4, s2="kill")
    reports, executor = Recording(), LocalExecutor(2)
    outcomes = run_cohort(items, job, executor, STATE, n_workers=2, progress=reports, most_deaths=1)
    executor.shutdown()  # a worker that was just being started would look into the next test
    check_whole(s3, tmp_path, {"s2"}, 4)
    assert outcomes[2].text.startswith("1 workers died on it, the last on ")
    assert any("was killed by signal 9; its items go" in note for note in reports.notes)
    assert set(times(tmp_path, "finished").values()) == {1}


def test_storage_that_is_gone_ends_the_call_in_one_line(s3: S3, tmp_path: Path) -> None:
    job, items = make(tmp_path, 3)
    s3.fault = lambda r: "503" if r.method == "PUT" and "marks/s1" in r.key else ""
    with pytest.raises(StorageError, match=r"marks/s1\.json: cannot be written, tried 3 times"):
        run_cohort(items, job, None, STATE)
    s3.fault = lambda _: ""
    run_cohort(items, job, None, STATE)
    check_whole(s3, tmp_path, set(), 3)
    assert set(times(tmp_path, "finished").values()) == {1}  # the result of s1 was there


KILLED = """
import sys
from pathlib import Path
from cohort_job import make
from virchow_st.cloud.place import Url
from virchow_st.cohort import run_cohort
from virchow_st.cohort.on_local import LocalExecutor
if __name__ == "__main__":
    folder, kind, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    job, items = make(folder, 10, rounds, s3="refuse", s7="crash")
    if kind == "local":
        executor = LocalExecutor(2)
    else:
        from virchow_st.cohort.on_slurm import SlurmExecutor
        executor = SlurmExecutor(folder / "slurm", {}, "local")
    url = Url("s3://bucket/lists/slides.cohort")
    run_cohort(items, job, executor, url, n_workers=2, most_deaths=1000)
"""


def at_work(s3: S3, most_attempts: int) -> list[int]:
    """Processes of the living workers that are at an item which was not tried more often."""
    found = []
    for name, content in list(s3.below("lists/slides.cohort/claims").items()):
        number, _, token = name.rpartition("@")[2].partition(".")
        with contextlib.suppress(ValueError):
            claim = json.loads(content.rpartition(b"\n")[0])
            if token and int(number) <= most_attempts and claim["state"] == "at work":
                found += [] if is_dead(claim["who"]) else [claim["process"]]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "slurm"])
def test_workers_killed_at_random_lose_nothing(s3: S3, tmp_path: Path, kind: str) -> None:
    """Two schedulers on one list; workers killed within an item, faults of the storage between."""
    rounds, n_kills = 4_000_000, 15
    script = tmp_path / "scheduler.py"
    script.write_text(KILLED)
    s3.fault = now_and_then(252)
    code = f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    schedulers = [run_script(code, tmp_path, kind, rounds) for _ in range(2)]
    killed, moments = 0, random.Random(253)
    while killed < n_kills and any(s.poll() is None for s in schedulers):
        time.sleep(moments.uniform(0, 1))
        if workers := at_work(s3, most_attempts=4):
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(moments.choice(workers), signal.SIGKILL)
                killed += 1
    ended(schedulers, 400)
    assert killed >= 8  # on a fast machine all items end before the fifteenth
    check_whole(s3, tmp_path, {"s3", "s7"}, 10, rounds)
    assert max(times(tmp_path, "finished").values()) <= 2  # killed between file and name

"""What is left of a store when the process that writes it is killed."""

import random
import signal
import subprocess
import sys
import time

import pytest
from killed_writer import BATCH, DIED, N_PATCHES
from written_store import SUPPORT, assert_is, assert_nothing_half_looks_whole, write


@pytest.mark.parametrize("n_kills", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed(tmp_path, whole, n_kills):
    rng = random.Random(n_kills)
    n_killed = n_stores = 0
    stopped_at = set()
    while n_killed < n_kills:
        path = tmp_path / f"{n_stores}.vst"
        n_stores += 1
        while not (path / "store.json").exists() and n_killed < n_kills:
            command = [sys.executable, SUPPORT / "killed_writer.py", path]
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

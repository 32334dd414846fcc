"""One writer at a time; a lock that a dead process left does not block the next one."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from virchow_st.errors import ConfigError
from virchow_st.runtime import lock as lock_module
from virchow_st.runtime.lock import BusyError, Lock, lock_beside, locked

HOLDER = """
import sys, time
from pathlib import Path
{before}
from virchow_st.runtime.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
NO_FLOCK = """
import errno, fcntl
def flock(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")
fcntl.flock = flock
"""


def hold(output: Path, before: str = "") -> subprocess.Popen[str]:
    """A process that holds the output's lock until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(before=before), str(output)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("before", ["", NO_FLOCK], ids=["flock", "file"])
def test_the_second_is_refused_until_the_first_is_dead(tmp_path, before, request):
    if before:
        request.getfixturevalue("without_flock")
    out = tmp_path / "a.zarr"
    process = hold(out, before)
    try:
        with pytest.raises(BusyError) as refused, locked(out):
            pytest.fail("both hold it")
        assert f"{out}: being written by process {process.pid} on " in str(refused.value)
        assert len(str(refused.value).splitlines()) == 1
    finally:
        end(process)
    with locked(out):
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("without_flock")
def test_a_lock_of_another_machine_stays_and_the_message_names_its_file(tmp_path):
    out = tmp_path / "a.zarr"
    with locked(out):
        (file,) = tmp_path.iterdir()
    process, *rest = lock_module.own_mark().splitlines()
    mark = "\n".join([process.rpartition(" on ")[0] + " on node17", *rest]) + "\n"
    file.write_text(mark)
    with pytest.raises(BusyError, match=f"on node17; .* delete {file}"), locked(out):
        pytest.fail("it was taken over")
    assert file.read_text() == mark


@pytest.mark.usefixtures("without_flock")
def test_a_later_process_of_the_same_number_is_not_the_holder(tmp_path):
    out = tmp_path / "a.zarr"
    with locked(out):
        (file,) = tmp_path.iterdir()
    head, started = lock_module.own_mark().splitlines()
    if not started:
        pytest.skip("this system does not say when a process was started")
    file.write_text(f"{head}\n{started[:-1]}{(int(started[-1]) + 1) % 10}\n")
    with locked(out):
        assert file.read_text().splitlines()[1] == started


@pytest.mark.parametrize("way", ["flock", "file"])
def test_of_many_at_once_one_holds_it(tmp_path, way, request):
    if way == "file":
        request.getfixturevalue("without_flock")
    out, inside, most, refused = tmp_path / "a", 0, 0, 0
    guard, start = threading.Lock(), threading.Barrier(8)

    def work() -> None:
        nonlocal inside, most, refused
        start.wait()
        for _ in range(50):
            try:
                with locked(out):
                    with guard:
                        inside += 1
                        most = max(most, inside)
                    with guard:
                        inside -= 1
            except BusyError:
                with guard:
                    refused += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not list(tmp_path.iterdir())


def test_a_lock_moves_with_its_folder(tmp_path):
    aside, run = tmp_path / "aside", tmp_path / "run"
    aside.mkdir()
    lock = Lock(run, aside / ".lock")
    aside.rename(run)
    lock.moved(run / ".lock")
    with pytest.raises(BusyError), locked(run, run / ".lock"):
        pytest.fail("both hold it")
    lock.release()
    assert not list(run.iterdir())


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    out = tmp_path / "none" / "a.zarr"
    with pytest.raises(ConfigError, match="cannot be written"), locked(out):
        pytest.fail("there is no such folder")
    assert lock_beside(out).name == ".a.zarr.lock"
    assert os.listdir(tmp_path) == []

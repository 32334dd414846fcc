"""A killed process that is not quite gone: its first thread is, and another holds a lock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_CODE = """
import ctypes, os, platform, sys, threading
from pathlib import Path
from virchow_st.cohort.lease import Leases
from virchow_st.runtime.lock import locked
lease = Leases(Path(sys.argv[1]), 60).claim(sys.argv[2], 0)
lease.begin()
def hold():
    with locked(Path(sys.argv[3])):
        print("held", flush=True)
        sys.stdin.read()
        os._exit(0)
threading.Thread(target=hold).start()
exit_of_one_thread = {"x86_64": 60, "aarch64": 93}[platform.machine()]
ctypes.CDLL(None).syscall(exit_of_one_thread, 0)
"""


def half_dead(claims: Path, file: str, output: Path) -> subprocess.Popen[str]:
    """Start one that has claimed an item and holds the output's lock until its stdin is closed.

    The kernel leaves a killed process in this state until its last thread is gone, which takes
    seconds where the machine is busy.
    """
    if sys.platform != "linux":
        pytest.skip("threads end one by one only with Linux's system call")
    process = subprocess.Popen(
        [sys.executable, "-c", _CODE, str(claims), file, str(output)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    while state_of(process.pid) != "Z":
        pass
    return process


def state_of(process: int) -> str:
    """The kernel's letter for a process: Z where it, or its first thread, has ended."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def end(process: subprocess.Popen[str]) -> None:
    """Let its last thread end."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.wait()
    process.stdout.close()

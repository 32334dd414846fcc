"""One writer for each output: a lock that ends with its holder, however the holder ends.

The lock is the kernel's (``flock``) on a small file, so that a process that is killed holds nothing
back, and most cluster file systems pass it on to other machines. On a file system without
``flock`` the file itself is the lock: it is created exclusively and names its process and machine.
One that a dead process of this machine left there is taken over; of another machine's process
nobody here can tell, and the message says which file to delete.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path

from virchow_st.errors import ConfigError, to_write_or

LOCK_NAME = ".lock"
"""The lock's file within a folder that is written in place, such as a run."""
_WITHOUT_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)
_HOLDER = re.compile(r"process (\d+) on (.*)\n(.*)\n?")


class BusyError(ConfigError):
    """Another process is writing the output."""


def lock_beside(output: Path) -> Path:
    """The lock's file for an output that is not there until it is whole, such as a prediction."""
    return output.with_name(f".{output.name}{LOCK_NAME}")


class Lock:
    """A lock that is held, until `release`.

    Args:
        output: what is going to be written, for messages.
        file: the lock's file; it is removed on release.

    Raises:
        BusyError: another process holds it, or another thread of this one.
        ConfigError: the file cannot be made there.
    """

    def __init__(self, output: Path, file: Path) -> None:
        self._output, self._file = output, file
        try:
            self._descriptor = self._take()
        except OSError as e:
            raise ConfigError(
                f"{output}: cannot be written ({e.strerror}); {to_write_or(e)}"
            ) from None

    def moved(self, file: Path) -> None:
        """Note the lock file's new path, after a folder around it was renamed."""
        by_creation = self._file.name.endswith(_SUFFIX)
        self._file = _exclusive(file) if by_creation else file

    def release(self) -> None:
        """Remove the file, then drop the lock."""
        with contextlib.suppress(OSError):  # on a file system that is read-only by now
            self._file.unlink(missing_ok=True)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _take(self) -> int | None:
        """Lock the file; its descriptor, or None where the file itself is the lock."""
        while True:
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The last holder removed its file: what was opened may no longer be what is there.
                if _is_same(descriptor, self._file):
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, own_mark().encode())
                    return descriptor
                os.close(descriptor)
            except BlockingIOError:
                mark = os.pread(descriptor, 1000, 0).decode("utf-8", "replace")
                os.close(descriptor)
                raise self._busy(mark) from None
            except OSError as e:
                os.close(descriptor)
                if e.errno not in _WITHOUT_FLOCK:
                    with contextlib.suppress(OSError):
                        self._file.unlink()
                    raise
                self._file.unlink(missing_ok=True)
                self._file = _exclusive(self._file)
                self._create()
                return None

    def _create(self) -> None:
        """Create the file exclusively; take over what a dead process of this machine left."""
        while True:
            try:
                descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                self._clear_away()
                continue
            try:
                os.write(descriptor, own_mark().encode())
            finally:
                os.close(descriptor)
            return

    def _clear_away(self) -> None:
        """Remove the file if its process is dead; raises `BusyError` if it lives, or may live."""
        found = _read(self._file)
        if found is None:  # it was removed just now
            return
        if not is_dead(found):
            raise self._busy(
                found, f"; if it is no longer there, delete {self._file} (no flock on this disk)"
            )
        # Renamed first: whoever else found it dead may have put a lock of its own there meanwhile.
        aside = self._file.with_name(f"{self._file.name}.{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._file, aside)
            if _read(aside) != found:
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self._file)
            aside.unlink()

    def _busy(self, mark: str, more: str = "") -> BusyError:
        return BusyError(f"{self._output}: being written by {_who(mark)}; wait for it to end{more}")


def holder(file: Path) -> str | None:
    """Who holds the lock of a file, ``process N on MACHINE``; None if no living process does."""
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _who(_read(file) or "")
    except OSError:  # not there, or no flock
        mark = _read(_exclusive(file))
        return None if mark is None or is_dead(mark) else _who(mark)
    return None


def _who(mark: str) -> str:
    return mark.partition("\n")[0].strip() or "another process"


@contextmanager
def locked(output: Path, file: Path | None = None) -> Iterator[Lock]:
    """Hold the lock of an output.

    Args:
        output: what is going to be written.
        file: the lock's file; `lock_beside` the output if None.

    Raises:
        BusyError, ConfigError: as `Lock` does.
    """
    lock = Lock(output, lock_beside(output) if file is None else file)
    try:
        yield lock
    finally:
        lock.release()


def remove_dead_lock(output: Path) -> None:
    """Remove a lock's file that a process which was killed left beside an output, if it did."""
    file = lock_beside(output)
    if file.exists() or _exclusive(file).exists():
        with contextlib.suppress(ConfigError), locked(output):
            pass


# --- lock files without flock -------------------------------------------------------------------

_SUFFIX = ".host"


def _exclusive(file: Path) -> Path:
    """Another name than flock's file, which is made before it is known that flock fails."""
    return file.with_name(file.name + _SUFFIX)


def own_mark() -> str:
    """Process and machine for people, then what tells this process from a later one."""
    return f"process {os.getpid()} on {socket.gethostname()}\n{_started(os.getpid())}\n"


def _started(process: int) -> str:
    """Boot, process namespace and start time; empty where the system does not say (macOS)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")
        return f"{boot} {namespace} {_fields(process)[19]}"
    except OSError:
        return ""


def _fields(process: int) -> list[str]:
    """What /proc says of a process after its name, which is in parentheses and may hold anything.

    The first is its state, the eighteenth its number of threads, the twentieth its start time.
    """
    return Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()


def is_dead(mark: str) -> bool:
    """Whether the process that left the mark is known to be gone."""
    if (found := _HOLDER.fullmatch(mark)) is None:
        return False
    process, host, started = int(found[1]), found[2], found[3]
    if host != socket.gethostname():
        return False
    here = _started(os.getpid()).rpartition(" ")[0]
    if started.rpartition(" ")[0] != here:
        return False  # another container, or before the machine was started anew
    if started and (now := _started(process)):
        return now != started or _has_ended(process)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _has_ended(process: int) -> bool:
    """Whether a process has ended and is only listed since its parent never asked for its end.

    One that was killed is listed as ended as soon as its first thread is; its other threads may
    still be within a write, and the process holds its files and their locks until the last is gone.
    """
    try:
        state, n_threads = itemgetter(0, 17)(_fields(process))
    except OSError:
        return True
    return state == "Z" and int(n_threads) <= 1


def _read(file: Path) -> str | None:
    try:
        return file.read_text("utf-8", "replace")
    except FileNotFoundError:
        return None


def _is_same(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False

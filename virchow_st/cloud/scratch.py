"""Folders on the machine's own disk for what is on its way from or to object storage.

They lie below ``TMPDIR`` (``/tmp`` if it is not set), in a folder of the user's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from virchow_st.cloud.place import Url
from virchow_st.cloud.storage import Entry, fetch
from virchow_st.errors import ConfigError, to_write_or
from virchow_st.runtime.atomic import remove
from virchow_st.runtime.lock import is_dead, locked, own_mark

_MARK = ".held"


def scratch() -> Path:
    """The user's own folder for unfinished work.

    Raises:
        ConfigError: it cannot be made, or belongs to somebody else.
    """
    folder = Path(tempfile.gettempdir()) / f"virchow_st-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as e:
        raise ConfigError(
            f"{folder}: cannot be made ({e.strerror}); {to_write_or(e, 'set TMPDIR to a folder')}"
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigError(f"{folder}: is not a folder of your own; set TMPDIR to one that is")
    return folder


@contextmanager
def workplace(url: Url) -> Iterator[Path]:
    """Where a result is made that goes to a URL: the same path each time, on this machine.

    A result that was begun and not finished, or finished and not uploaded, is therefore gone on
    with by the next process that makes it here. On leaving without an error all of it is removed.

    Raises:
        BusyError: another process of this machine makes it.
    """
    digest = hashlib.sha256(str(url).encode()).hexdigest()[:16]
    folder = scratch() / f"result-{digest}"
    with locked(url, folder.with_name(f"{folder.name}.lock")):
        folder.mkdir(exist_ok=True)
        try:
            yield folder / url.name
        except BaseException:
            with contextlib.suppress(OSError):  # it stays where something is left to go on with
                folder.rmdir()
            raise
        remove(folder)


@contextmanager
def held_folder() -> Iterator[Path]:
    """A folder for this process alone; removed on leaving, or by a later process if killed."""
    home = scratch()
    for other in home.glob("held-*"):
        with contextlib.suppress(OSError):
            if is_dead((other / _MARK).read_text("utf-8")):
                remove(other)
    folder = home / f"held-{uuid.uuid4().hex}"
    folder.mkdir()
    (folder / _MARK).write_text(own_mark(), "utf-8")
    try:
        yield folder
    finally:
        remove(folder)


def fetched(url: Url, folder: Path, found: Entry | None = None) -> Path:
    """Copy an object into a folder under its own name, with the disk's errors in one line."""
    path = folder / url.name
    try:
        fetch(url, path, found)
    except OSError as e:
        raise ConfigError(
            f"{path}: cannot be written ({e.strerror}); {to_write_or(e, 'set TMPDIR')}"
        ) from None
    return path

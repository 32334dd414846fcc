"""Files and folders that are there whole or not at all, whenever their writer is killed.

What is unfinished is called ``.NAME.part`` and lies beside its place. The name is fixed, so that
the next writer finds what a dead one left; hence whoever writes holds a lock (`runtime.lock`), on
the output itself or on the folder that it lies in. What takes its name has reached the disk: a
power cut leaves the old or the new, too.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from virchow_st.errors import ConfigError
from virchow_st.runtime.lock import locked

_PART, _OLD, _READY = ".part", ".old", ".results.ready"


def aside_of(path: Path) -> Path:
    """Where a file or folder lies until it is whole."""
    return path.with_name(f".{path.name}{_PART}")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write a file to, which takes the name ``path`` when it is whole and on the disk.

    The caller holds the lock of the file or of its folder. An `OSError` that a write raises names
    ``path``.
    """
    aside = aside_of(path)
    with _naming(path, aside):
        try:
            yield aside
            _sync(aside)
            os.replace(aside, path)
        except BaseException:
            remove(aside)
            raise
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, as `written_whole`."""
    with written_whole(path) as aside:
        aside.write_text(text, "utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, as `written_whole`."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False))


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the name ``folder`` when it is whole and on the disk.

    The caller holds the lock of the folder or of the one that it lies in.
    """
    aside = aside_of(folder)
    with _naming(folder, aside):
        remove(aside)
        aside.mkdir(parents=True)
        try:
            yield aside
            _sync_below(aside)
            os.rename(aside, folder)
        except BaseException:
            remove(aside)
            raise
        sync_folder(folder.parent)


@contextmanager
def new_output(out: Path) -> Iterator[Path]:
    """A folder for unfinished work beside ``out``; its ``result`` becomes ``out`` at the end.

    The output is locked meanwhile. Whatever happens before leaves neither; a process that was
    killed leaves the folder, ``.NAME.part``, which the next one for ``out`` removes.

    Raises:
        ConfigError: ``out`` is there already, or another process is writing it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out):
        check_absent(out)  # again: another process may have ended since the job was begun
        aside = aside_of(out)
        with _naming(out, aside):
            remove(aside)
            aside.mkdir()
            try:
                yield aside
                _sync_below(aside / "result")
                (aside / "result").rename(out)
            except BaseException:
                _remove_for_good(aside)
                raise
            remove(aside)
            sync_folder(out.parent)


def check_absent(out: Path) -> None:
    """Raise `ConfigError` where an output is there already."""
    if out.exists() or out.is_symlink():
        with contextlib.suppress(ConfigError), locked(out):
            remove(aside_of(out))  # of one that was killed just after it was done
        raise ConfigError(f"{out}: is already there; delete it or give another --out")


# --- what replaces something --------------------------------------------------------------------


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """As `whole_folder`, in the place of one that is there; `settled` finds it at any moment."""
    old, aside = _old(folder), aside_of(folder)
    settle(folder)
    with _naming(folder, aside):
        remove(aside)
        aside.mkdir(parents=True)
        try:
            yield aside
            _sync_below(aside)
        except BaseException:
            remove(aside)
            raise
        if folder.exists():
            os.replace(folder, old)
        os.replace(aside, folder)
        sync_folder(folder.parent)
    remove(old)


def settled(folder: Path) -> Path:
    """The folder, or its predecessor if its writer died between the two renames."""
    old = _old(folder)
    return old if not folder.exists() and old.exists() else folder


def settle(folder: Path) -> None:
    """Finish or undo what a writer in `replaced_folder` left when it died; the caller has the lock.

    If it died between the two renames, the predecessor is all there is and gets its name back; if
    it died after them, the predecessor is removed.
    """
    old = _old(folder)
    if settled(folder) == old:
        os.replace(old, folder)
    remove(old)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}{_OLD}")


@contextmanager
def replaced_together(folder: Path, seal: str) -> Iterator[Path]:
    """A folder to write files to, which together replace those of their names in ``folder``.

    Until all are whole, those in ``folder`` stay as they are. Then the seal goes first and comes
    last, so that old and new are never taken for one; `finish_replacing` does what is left if the
    process dies meanwhile.

    Args:
        folder: locked by the caller; it is made if it is not there.
        seal: name of the file without which the others are not read.
    """
    aside, is_new = folder / f".results{_PART}", not folder.exists()
    with _naming(folder, aside):
        folder.mkdir(exist_ok=True)
        try:
            remove(aside)
            aside.mkdir()
            yield aside
            _sync_below(aside)
            _check_replaceable(folder, aside)
            os.rename(aside, folder / _READY)
        except BaseException:
            remove(aside)
            if is_new:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise
        sync_folder(folder)
        finish_replacing(folder, seal)


def _check_replaceable(folder: Path, aside: Path) -> None:
    """Raise `PermissionError` where a folder of old files could not be removed for the new ones."""
    for new in aside.iterdir():
        for below in (folder / new.name, *(folder / new.name).rglob("*")):
            if below.is_dir() and not os.access(below, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(below))


def finish_replacing(folder: Path, seal: str) -> None:
    """Put files in their places that `replaced_together` had made ready; none may be there."""
    ready = folder / _READY
    if not ready.is_dir():
        return
    if (ready / seal).is_file():
        (folder / seal).unlink(missing_ok=True)
    for path in sorted(ready.iterdir(), key=lambda path: (path.name == seal, path.name)):
        if path.is_dir():
            remove(folder / path.name)
        os.replace(path, folder / path.name)
    ready.rmdir()
    sync_folder(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what dead processes left unfinished in a folder that the caller has locked."""
    for leftover in folder.glob(f".*{_PART}"):
        remove(leftover)


def remove(path: Path) -> None:
    """Remove a file or a folder if it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _remove_for_good(folder: Path) -> None:
    """Remove a folder whose filling failed; other threads may still write to it for a moment.

    Where one chunk of an array cannot be written, Zarr raises at once, and its threads go on with
    the chunks that they have begun.
    """
    for _ in range(20):
        remove(folder)
        time.sleep(0.05)
        if not folder.exists():
            return


# --- the disk -----------------------------------------------------------------------------------


def sync_folder(path: Path) -> None:
    """Let the names in a folder survive a power cut."""
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_below(path: Path) -> None:
    if path.is_dir():
        for below in path.iterdir():
            _sync_below(below)
    _sync(path)


@contextmanager
def _naming(path: Path, aside: Path) -> Iterator[None]:
    """Let an `OSError` of writing name the output: of ``write`` it has no name, or the aside's."""
    try:
        yield
    except OSError as e:
        if e.errno is not None and (e.filename is None or _is_within(str(e.filename), aside)):
            e.filename, e.filename2 = str(path), None
        raise


def _is_within(name: str, folder: Path) -> bool:
    return name == str(folder) or name.startswith(f"{folder}{os.sep}")

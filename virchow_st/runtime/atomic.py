"""Writes files and folders so that they are complete or absent, even if the writer is killed.

An unfinished output is called ``.NAME.part`` and lies beside the final one. The name is fixed, so
that the next writer finds what a killed writer left. A writer therefore holds a lock
(`runtime.lock`) on the output or on its folder. An output is synced to disk before it is renamed,
so that a power cut leaves either the old or the new one.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from virchow_st.errors import ConfigError
from virchow_st.runtime.lock import locked

_PART, _OLD, _READY = ".part", ".old", ".results.ready"


def aside_of(path: Path) -> Path:
    """Path of a file or folder while it is unfinished: ``.NAME.part`` beside it."""
    return path.with_name(f".{path.name}{_PART}")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on leaving, the file is synced and renamed to ``path``.

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


@contextmanager
def written_table(path: Path, head: Sequence[str]) -> Iterator[Callable[[Sequence[object]], Any]]:
    """Yield a function that adds a row to a CSV file; on leaving, it is whole at ``path``.

    Args:
        path: As in `written_whole`.
        head: Names of the columns, the first row.
    """
    with written_whole(path) as aside, open(aside, "w", newline="", encoding="utf-8") as f:
        write_row = csv.writer(f, lineterminator="\n").writerow
        write_row(head)
        yield write_row


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, as `written_whole`."""
    with written_whole(path) as aside:
        aside.write_text(text, "utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, as `written_whole`."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False))


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on leaving, it is synced and renamed to ``folder``.

    The caller holds the lock of the folder or of its parent.
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
def new_output(out: Path, goes_on: bool = False) -> Iterator[Path]:
    """Yield a folder for unfinished work beside ``out``; its ``result`` is renamed to ``out``.

    The output is locked in the meantime. An error removes the folder and leaves no output. A
    process that is killed leaves the folder, ``.NAME.part``, which the next writer of ``out``
    removes.

    Args:
        out: the output.
        goes_on: if True, the next writer of ``out`` gets the folder as it was left by a process
            that was killed, or stopped by Ctrl-C or SIGTERM. An error removes it nevertheless.

    Raises:
        ConfigError: ``out`` is there already, or another process is writing it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out):
        check_absent(out)  # again: another process may have ended since the job was begun
        aside = aside_of(out)
        with _naming(out, aside):
            if not (goes_on and aside.is_dir()):
                remove(aside)
                aside.mkdir()
            try:
                yield aside
                _sync_below(aside / "result")
                (aside / "result").rename(out)
            except BaseException as e:
                if not goes_on or isinstance(e, Exception):
                    _remove_for_good(aside)
                raise
            remove(aside)
            sync_folder(out.parent)


def check_absent(out: Path) -> None:
    """Raise `ConfigError` if an output exists already."""
    if out.exists() or out.is_symlink():
        with contextlib.suppress(ConfigError), locked(out):
            remove(aside_of(out))  # of one that was killed just after it was done
        raise ConfigError(f"{out}: is already there; delete it or give another --out")


# --- what replaces something --------------------------------------------------------------------


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """As `whole_folder`, but replaces an existing folder; `settled` finds it at any moment."""
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
    """Path of the folder, or of its predecessor if the writer died between the two renames."""
    old = _old(folder)
    return old if not folder.exists() and old.exists() else folder


def settle(folder: Path) -> None:
    """Finish or undo an interrupted `replaced_folder`; the caller holds the lock.

    If the writer died between the two renames, the predecessor is renamed back; if it died after
    them, the predecessor is removed.
    """
    old = _old(folder)
    if settled(folder) == old:
        os.replace(old, folder)
    remove(old)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}{_OLD}")


@contextmanager
def replaced_together(folder: Path, seal: str) -> Iterator[Path]:
    """Yield a folder for files that together replace those of the same names in ``folder``.

    The files in ``folder`` stay unchanged until all new ones are complete. Then the seal is removed
    first and written last, so that a mixture of old and new files is never taken for one result. If
    the process dies in between, `finish_replacing` does the rest.

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
    """Finish an interrupted `replaced_together`, if there is one."""
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
    """Remove the unfinished outputs of dead processes from a folder that the caller has locked."""
    for leftover in folder.glob(f".*{_PART}"):
        remove(leftover)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists and can be removed."""
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
    """Sync a folder to disk, so that new names in it survive a power cut."""
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

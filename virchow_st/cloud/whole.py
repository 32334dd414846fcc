"""Results in object storage: whole and checked, or no results.

Object storage has no rename. A result ``NAME`` is uploaded file by file, in this order:

1. ``NAME.files.json`` beside it: the size and MD5 digest of every file;
2. every file but the root, which is ``zarr.json`` of a field and ``store.json`` of a store;
3. when all of them have arrived with these sizes and digests, the root.

A folder without its root is no result, for this package as for any reader of Zarr, and a folder
that has one is complete. An upload that was stopped is gone on with: files that have arrived are
left as they are. A result of one file is its own root.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, TypedDict

from virchow_st.cloud import storage
from virchow_st.cloud.place import Url
from virchow_st.cloud.storage import Content, Entry
from virchow_st.errors import ConfigError, StorageError
from virchow_st.runtime.atomic import remove, whole_folder, written_whole
from virchow_st.runtime.lock import locked
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.schema import Count, check, parse_json

ENDING = ".files.json"
FORMAT: Literal["virchow_st.files/1"] = "virchow_st.files/1"
_ROOTS = ("zarr.json", "store.json")
_FILE = ""  # name of a result that is one file, from itself


class _Listed(TypedDict):
    bytes: Count
    md5: str


class _List(TypedDict):
    format: Literal["virchow_st.files/1"]
    root: str
    files: dict[str, _Listed]


def list_of(url: Url) -> Url:
    """Where the list of a result's files lies.

    >>> str(list_of(Url("s3://bucket/out/P1.zarr")))
    's3://bucket/out/P1.zarr.files.json'
    """
    return url.with_name(f"{url.name}{ENDING}")


def is_there(url: Url) -> bool:
    """Whether there is a result, judged by its root alone, with few requests.

    Raises:
        StorageError: the storage cannot be reached or refuses.
    """
    return any(storage.entry(one) is not None for one in (url, *(url / name for name in _ROOTS)))


def is_whole(url: Url) -> bool:
    """Whether there is a result that `put_whole` has uploaded to the end.

    Raises:
        StorageError: the storage cannot be reached or refuses.
    """
    listed = _read_list(url)
    if listed is None:
        return False
    root = _at(url, listed["root"])
    return _is_same(root, storage.entry(root), _content(listed["files"][listed["root"]]))


def put_whole(
    path: Path, url: Url, progress: Progress = SILENT, beside: Mapping[str, Path] | None = None
) -> None:
    """Upload a finished file or folder, or go on with an upload that was stopped.

    Args:
        path: the result; files and folders whose names begin with a dot are left out.
        url: where it goes; nothing else may lie there.
        progress: receives the number of files.
        beside: further files, by their names beside ``url``, which arrive before the result does.

    Raises:
        ConfigError: something else is there, or the path holds no result.
        StorageError: the storage cannot be reached or refuses; nothing that is there looks whole.
    """
    files = {name: storage.content_of(path / name if name else path) for name in _names(path)}
    root = _root_of(path, files)
    there, before = storage.below(url), _read_list(url)
    old = before["files"] if before else {}
    if root in there:
        same = {n: (c.size, c.md5) for n, c in files.items()} == {
            n: (listed["bytes"], listed["md5"]) for n, listed in old.items()
        }
        if not same:
            raise ConfigError(f"{url}: is already there; delete it or give another place")
        if _is_same(_at(url, root), there[root], files[root]):
            return
        storage.delete([_at(url, root)])
        del there[root]
    if others := sorted(there.keys() - old.keys() - files.keys()):
        raise ConfigError(
            f"{url}: expected no objects there; found {others[0] or url.name}; delete it or give "
            "another place"
        )
    storage.delete(_at(url, name) for name in sorted(there.keys() - files.keys()))
    content: _List = {
        "format": FORMAT,
        "root": root,
        "files": {n: {"bytes": c.size, "md5": c.md5} for n, c in sorted(files.items())},
    }
    if content != before:
        storage.send_bytes(json.dumps(content, indent=0).encode(), list_of(url))
    first = {name: c for name, c in files.items() if name != root}
    _send_all(path, url, first, there, progress)
    for name, file in (beside or {}).items():
        storage.send(file, url.with_name(name))
    _check_arrived(url, first)
    storage.send(path / root if root else path, _at(url, root))
    if not _is_same(_at(url, root), storage.entry(_at(url, root)), files[root]):
        storage.delete([_at(url, root)])
        raise _damaged(_at(url, root))


def get_whole(url: Url, path: Path, progress: Progress = SILENT) -> None:
    """Download a result and compare every file with the list that was uploaded with it.

    Args:
        url: the result.
        path: where it goes; it is there as a whole or not at all.
        progress: receives the number of files.

    Raises:
        ConfigError: ``path`` is already there or cannot be written.
        StorageError: there is no whole result, a file is damaged, or the storage cannot be reached.
    """
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path}: is already there; delete it or give another place")
    listed = _read_list(url)
    if listed is None or not is_whole(url):
        raise StorageError(
            f"{url}: expected a result that vst has uploaded, with {url.name}{ENDING} beside it; "
            f"{'it is not complete' if listed else 'there is none'}; upload it again, or copy it "
            "with the storage's own tool"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {name: _content(one) for name, one in listed["files"].items()}
    with locked(path):
        if listed["root"] == _FILE:
            with written_whole(path) as aside:
                _get(url, aside, files[_FILE])
            return
        with whole_folder(path) as aside, ThreadPoolExecutor(storage.N_AT_ONCE, "get") as pool:
            for name in files:
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
            waiting = [
                pool.submit(_get, _at(url, name), aside / name, one) for name, one in files.items()
            ]
            _wait(pool, waiting, progress, "files downloaded")


def peek_root(url: Url, folder: Path) -> Path:
    """Copy the root of a result alone into a folder, as part of a result of the same name.

    Raises:
        StorageError: it is not there.
    """
    listed = _read_list(url)
    root = listed["root"] if listed else _ROOTS[0]
    path = folder / url.name / root if root else folder / url.name
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.fetch(_at(url, root), path)
    return folder / url.name


# --- one file -----------------------------------------------------------------------------------


def _send_all(
    path: Path,
    url: Url,
    files: Mapping[str, Content],
    there: Mapping[str, Entry],
    progress: Progress,
) -> None:
    left = [n for n, c in files.items() if n not in there or not there[n].is_proven(c)]
    with ThreadPoolExecutor(storage.N_AT_ONCE, "send") as pool:
        waiting = [pool.submit(storage.send, path / name, _at(url, name)) for name in left]
        _wait(pool, waiting, progress, "files uploaded")


def _wait(
    pool: ThreadPoolExecutor, waiting: Sequence[Future[None]], progress: Progress, unit: str
) -> None:
    """Wait for all; after an error, or when stopped, those that have not begun are dropped."""
    try:
        for number, one in enumerate(waiting, 1):
            one.result()
            progress.step(number, len(waiting), unit)
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def _check_arrived(url: Url, files: Mapping[str, Content]) -> None:
    """Compare what is there with what was sent: by the storage's digests, or by reading it."""
    there = storage.below(url)
    if others := sorted(there.keys() - files.keys()):
        raise StorageError(f"{url}: {others[0]} was put there meanwhile; delete it, and try again")
    compare = partial(_compare, url, there)
    with ThreadPoolExecutor(storage.N_AT_ONCE, "compare") as pool:
        list(pool.map(compare, files.items()))


def _compare(url: Url, there: Mapping[str, Entry], file: tuple[str, Content]) -> None:
    name, content = file
    if not _is_same(_at(url, name), there.get(name), content):
        storage.delete([_at(url, name)])
        raise _damaged(_at(url, name))


def _is_same(url: Url, found: Entry | None, content: Content) -> bool:
    if found is None or found.size != content.size:
        return False
    return found.is_proven(content) or storage.read_md5(url, found.size) == content.md5


def _get(url: Url, path: Path, content: Content) -> None:
    found = storage.entry(url)
    if found is None or storage.fetch(url, path, found) != content.md5:
        remove(path)
        raise StorageError(
            f"{url}: expected the file that was uploaded; "
            f"{'it is gone' if found is None else 'it has other bytes'}; upload it again"
        )


def _damaged(url: Url) -> StorageError:
    return StorageError(
        f"{url}: arrived with other bytes than were sent; run the same command again, which sends "
        "it anew"
    )


# --- names --------------------------------------------------------------------------------------


def _at(url: Url, name: str) -> Url:
    return url / name if name else url


def _names(path: Path) -> Sequence[str]:
    if path.is_file():
        return [_FILE]
    below = (p.relative_to(path) for p in path.rglob("*") if p.is_file())
    return sorted(p.as_posix() for p in below if not any(part[0] == "." for part in p.parts))


def _root_of(path: Path, names: Mapping[str, Content]) -> str:
    root = next((name for name in (_FILE, *_ROOTS) if name in names), None)
    if root is None:
        raise ConfigError(
            f"{path}: expected a finished result: a file, a store (with {_ROOTS[1]}) or a field "
            f"(with {_ROOTS[0]}); found neither"
        )
    return root


def _content(listed: _Listed) -> Content:
    return Content(listed["bytes"], listed["md5"], "")


def _read_list(url: Url) -> _List | None:
    """The list of a result's files; None if there is none that can be read."""
    place = list_of(url)
    if (found := storage.entry(place)) is None:
        return None
    try:
        listed: _List = check(parse_json(storage.read(place, 0, found.size).decode()), _List)
    except ValueError:
        return None
    names = [PurePosixPath(name) for name in listed["files"] if name]
    is_safe = all(not n.is_absolute() and ".." not in n.parts for n in names)
    return listed if is_safe and listed["root"] in listed["files"] else None

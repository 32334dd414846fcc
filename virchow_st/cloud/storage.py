"""Reads, writes, lists and deletes objects.

Every call is tried a few times (`virchow_st.cloud.client`). Bytes that arrive are counted, so that
an answer that was cut off is asked for again.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from virchow_st.cloud.client import N_AT_ONCE, files_of, is_there_error, said, tried
from virchow_st.cloud.place import Url
from virchow_st.errors import StorageError

PART_BYTES = 50 << 20
"""Size of the parts of an upload of 100 MiB or more."""
_FETCHED_BYTES = 16 << 20
_MOST_PARTS = 10_000

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """An object.

    Attributes:
        size: bytes.
        tag: what changes when the object does, such as the ETag of S3 and HTTP; may be empty. In
            many storages it is the MD5 digest of the bytes, or of the digests of the parts that
            they were uploaded in, but not in all, and not where a key of the user encrypts them.
    """

    size: int
    tag: str

    def is_proven(self, content: Content) -> bool:
        """Whether the tag proves that the object has this content; often it proves nothing."""
        return self.size == content.size and self.tag in (content.md5, content.md5_of_parts)


@dataclass(frozen=True)
class Content:
    """Size of a file in bytes, its MD5 digest, and the tag that S3 gives it if sent in parts."""

    size: int
    md5: str
    md5_of_parts: str


def entry(url: Url) -> Entry | None:
    """The object at a URL; None if there is none.

    Raises:
        StorageError: the storage cannot be reached or refuses.
    """
    files = files_of(url)
    try:
        found = tried(url, "read", files.info, str(url))
    except FileNotFoundError:
        return None
    return None if found.get("type") == "directory" else _entry(found)


def size_and_tag(path: Path) -> tuple[int, int | str]:
    """Size of a file or object, and what changes when it does; zeros for one that is missing.

    Opening it reports what is wrong.
    """
    try:
        if isinstance(path, Url):
            found = entry(path)
            return (0, 0) if found is None else (found.size, found.tag)
        about = path.stat()
    except (OSError, StorageError):
        return 0, 0
    return about.st_size, about.st_mtime_ns


def below(url: Url) -> dict[str, Entry]:
    """All objects below a URL, by their name from there; ``""`` is the object at the URL itself.

    Raises:
        StorageError: as for `entry`.
    """
    files, key = files_of(url), str(url)
    try:
        found = tried(url, "listed", files.find, key, detail=True)
    except FileNotFoundError:
        return {}
    root = str(files._strip_protocol(key)).rstrip("/")
    return {
        str(files._strip_protocol(name)).removeprefix(root).lstrip("/"): _entry(about)
        for name, about in found.items()
        if not name.endswith("/")
    }


def read(url: Url, start: int, stop: int) -> bytes:
    """Bytes ``[start, stop)`` of an object.

    Raises:
        StorageError: as for `entry`; or the object is not there, or gives other bytes than these.
    """
    files = files_of(url)

    def whole() -> bytes:
        found = files.cat_file(str(url), start=start, end=stop)
        if len(found) != stop - start:
            raise OSError(f"{len(found):,} bytes came of {stop - start:,}")
        return bytes(found)

    if stop <= start:
        return b""
    try:
        return tried(url, "read", whole)
    except FileNotFoundError:
        raise missing(url) from None


def read_small(url: Url) -> bytes | None:
    """All bytes of an object that is not empty, by one request; None if there is none.

    Raises:
        StorageError: as for `entry`.
    """
    try:
        read = files_of(url).cat_file
        return bytes(tried(url, "read", read, str(url), start=0, end=_FETCHED_BYTES))
    except FileNotFoundError:
        return None


def content_at(path: Path) -> bytes | None:
    """All bytes of a list at a URL; None for a path, which its reader opens itself.

    Raises:
        StorageError: as for `read`.
    """
    if not isinstance(path, Url):
        return None
    if (found := entry(path)) is None:
        raise missing(path)
    return read(path, 0, found.size)


def fetch(url: Url, path: Path, found: Entry | None = None) -> str:
    """Copy an object to a file, in pieces; the MD5 digest of its bytes.

    Args:
        url: the object.
        path: the file; it is overwritten.
        found: the object, as `entry` gives it; looked up if None.

    Raises:
        StorageError: as for `read`.
    """
    if found is None and (found := entry(url)) is None:
        raise missing(url)
    starts = range(0, found.size, _FETCHED_BYTES)
    digest, size = hashlib.md5(usedforsecurity=False), found.size
    with path.open("wb") as file, ThreadPoolExecutor(2, "fetch") as pool:
        waiting = [pool.submit(read, url, at, min(at + _FETCHED_BYTES, size)) for at in starts[:2]]
        for number in range(len(starts)):
            piece = waiting.pop(0).result()
            if number + 2 < len(starts):
                at = starts[number + 2]
                waiting.append(pool.submit(read, url, at, min(at + _FETCHED_BYTES, size)))
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def read_md5(url: Url, size: int) -> str:
    """The MD5 digest of the bytes of an object of a known size, which are read; see `read`."""
    digest = hashlib.md5(usedforsecurity=False)
    for at in range(0, size, _FETCHED_BYTES):
        digest.update(read(url, at, min(at + _FETCHED_BYTES, size)))
    return digest.hexdigest()


def send(path: Path, url: Url) -> None:
    """Copy a file to an object, which is there as a whole or not at all.

    Raises:
        StorageError: the storage cannot be reached or refuses.
    """
    size = path.stat().st_size
    more = {"chunksize": _part_bytes(size)} if url.scheme == "s3" else {}
    _written(url, _files_to_write(url).put_file, str(path), str(url), **more)


def send_bytes(content: bytes, url: Url) -> None:
    """Write an object, as `send`."""
    _written(url, _files_to_write(url).pipe_file, str(url), content)


def create(content: bytes, url: Url) -> bool:
    """Write an object unless there is one, which the storage decides; whether it was written.

    Args:
        content: bytes that nobody else writes there. The answer to a write that succeeded may be
            lost, and when it is tried again the object is in its own way: it is known by them.
        url: the object.

    Raises:
        StorageError: the storage cannot be reached or refuses. The object may be there all the
            same, or come later.
    """
    files = _files_to_write(url)

    def is_new() -> bool:
        try:
            files.pipe_file(str(url), content, mode="create")
        except Exception as e:  # each storage's package raises errors of its own
            if not is_there_error(e):
                raise
            return False
        return True

    return _written(url, is_new) or read_small(url) == content


def delete(urls: Iterable[Url]) -> None:
    """Delete objects; those that are gone already count as deleted."""
    for url in urls:
        try:
            tried(url, "deleted", files_of(url).rm_file, str(url))
        except FileNotFoundError:
            continue


def content_of(path: Path) -> Content:
    """The content of a file, to be compared with an object's."""
    size, whole, parts = path.stat().st_size, hashlib.md5(usedforsecurity=False), []
    part_bytes = _part_bytes(size)
    with path.open("rb") as file:
        while True:
            part, left = hashlib.md5(usedforsecurity=False), part_bytes
            while left and (piece := file.read(min(left, 1 << 20))):
                whole.update(piece)
                part.update(piece)
                left -= len(piece)
            if left == part_bytes:
                break
            parts.append(part.digest())
    of_parts = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
    return Content(size, whole.hexdigest(), f"{of_parts}-{len(parts)}")


def together(function: Callable[[S], T], values: Sequence[S]) -> list[T]:
    """Call a function that waits for a storage's answers with each value, several at once."""
    with ThreadPoolExecutor(2 * N_AT_ONCE, "ask") as pool:
        return list(pool.map(function, values))


def missing(url: Url) -> StorageError:
    """The error for an object that is not there."""
    return StorageError(f"{url}: expected an object; there is none; see its bucket and its name")


def _part_bytes(size: int) -> int:
    return max(PART_BYTES, -(-size // _MOST_PARTS))


def _files_to_write(url: Url) -> Any:
    if url.scheme in ("http", "https"):
        raise StorageError(f"{url}: cannot be written; give s3://, gs:// or az://")
    return files_of(url)


def _written(url: Url, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    try:
        return tried(url, "written", function, *arguments, **options)
    except FileNotFoundError as e:
        raise StorageError(f"{url}: cannot be written ({said(e)}); make its bucket") from None


def _entry(about: dict[str, Any]) -> Entry:
    told = about.get("md5Hash") or about.get("content_md5")  # of Google's and Azure's storage
    if told:
        with contextlib.suppress(binascii.Error, ValueError, TypeError):
            digest = base64.b64decode(told) if isinstance(told, str) else bytes(told)
            return Entry(int(about.get("size") or 0), digest.hex())
    names = ("ETag", "etag", "Last-Modified", "mtime", "created")
    tag = next((str(about[name]) for name in names if about.get(name)), "")
    return Entry(int(about.get("size") or 0), tag.strip('"'))

"""Reads, writes, lists and deletes objects through fsspec, with bounded timeouts and retries.

Every call is tried a few times. Bytes that arrive are counted, so that an answer that was cut off
is asked for again. Credentials come from where fsspec and its packages look for them: the
environment and the files of the storage's own tools.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from virchow_st.cloud.place import Url
from virchow_st.errors import StorageError

TRIES, WAIT_S = 4, 1.0
"""How often a call is tried, and the pause after the first; each later pause is three times it."""
CONNECT_S, READ_S = 10, 30
"""Seconds to wait for a connection to S3, and for its next bytes."""
S3_TRIES, CONNECTION_TRIES = 3, 2
"""How often s3fs and the connection below it try, within each of `TRIES`."""
PART_BYTES = 50 << 20
"""Size of the parts of an upload of 100 MiB or more."""
N_AT_ONCE = 8
_FETCHED_BYTES = 16 << 20
_MOST_PARTS = 10_000
_PACKAGES = {"s3": "'virchow_st[cloud]'", "gs": "gcsfs", "az": "adlfs"}
_NO_KEYS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError")
_LOOK = (
    "see that its storage can be reached and run the same command again, which goes on with what "
    "is finished"
)

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
    files = _files(url)
    try:
        found = _tried(url, "read", files.info, _key(url))
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
    files, key = _files(url), _key(url)
    try:
        found = _tried(url, "listed", files.find, key, detail=True)
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
    files = _files(url)

    def whole() -> bytes:
        found = files.cat_file(_key(url), start=start, end=stop)
        if len(found) != stop - start:
            raise OSError(f"{len(found):,} bytes came of {stop - start:,}")
        return bytes(found)

    if stop <= start:
        return b""
    try:
        return _tried(url, "read", whole)
    except FileNotFoundError:
        raise missing(url) from None


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
    files, more = _files(url), {"chunksize": _part_bytes(size)} if url.scheme == "s3" else {}
    if url.scheme in ("http", "https"):
        raise StorageError(f"{url}: cannot be written; give s3://, gs:// or az://")
    try:
        _tried(url, "written", files.put_file, str(path), _key(url), **more)
    except FileNotFoundError as e:
        raise StorageError(f"{url}: cannot be written ({_said(e)}); make its bucket") from None


def send_bytes(content: bytes, url: Url) -> None:
    """Write an object, as `send`."""
    try:
        _tried(url, "written", _files(url).pipe_file, _key(url), content)
    except FileNotFoundError as e:
        raise StorageError(f"{url}: cannot be written ({_said(e)}); make its bucket") from None


def delete(urls: Iterable[Url]) -> None:
    """Delete objects; those that are gone already count as deleted."""
    for url in urls:
        try:
            _tried(url, "deleted", _files(url).rm_file, _key(url))
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


def _key(url: Url) -> str:
    return str(url)


def _files(url: Url) -> Any:
    """The file system of fsspec for a URL."""
    try:
        import fsspec

        if url.scheme == "s3":
            given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
            ours = {
                "connect_timeout": CONNECT_S,
                "read_timeout": READ_S,
                "retries": {"total_max_attempts": CONNECTION_TRIES},
                "max_pool_connections": 4 * N_AT_ONCE,
            }
            files = fsspec.filesystem(
                "s3", use_listings_cache=False, config_kwargs={**ours, **given}
            )
            files.retries = S3_TRIES
            return files
        return fsspec.filesystem(url.scheme, use_listings_cache=False)
    except ImportError as e:
        package = _PACKAGES.get(url.scheme, _PACKAGES["s3"])
        raise StorageError(
            f"{url}: object storage needs another package ({_said(e)}); pip install {package}"
        ) from None


def _tried(url: Url, done: str, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call a function of fsspec, again where it fails.

    Raises:
        FileNotFoundError: there is no such object or bucket.
        StorageError: it is refused, or fails to the last.
    """
    for number in range(TRIES):
        if number:
            time.sleep(WAIT_S * 3 ** (number - 1))
        try:
            return function(*arguments, **options)
        except FileNotFoundError:
            raise
        except PermissionError as e:
            raise StorageError(
                f"{url}: cannot be {done} ({_said(e)}); get the rights to it, or set the "
                "credentials of the account that has them (AWS_PROFILE, for instance)"
            ) from None
        except Exception as e:  # each storage's package raises errors of its own
            if type(e).__name__ in _NO_KEYS:
                raise StorageError(
                    f"{url}: cannot be {done} ({_said(e)}); set the credentials, such as "
                    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
                ) from None
            said = _said(e)
    raise StorageError(f"{url}: cannot be {done}, tried {TRIES} times ({said}); {_LOOK}")


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _entry(about: dict[str, Any]) -> Entry:
    told = about.get("md5Hash") or about.get("content_md5")  # of Google's and Azure's storage
    if told:
        with contextlib.suppress(binascii.Error, ValueError, TypeError):
            digest = base64.b64decode(told) if isinstance(told, str) else bytes(told)
            return Entry(int(about.get("size") or 0), digest.hex())
    names = ("ETag", "etag", "Last-Modified", "mtime", "created")
    tag = next((str(about[name]) for name in names if about.get(name)), "")
    return Entry(int(about.get("size") or 0), tag.strip('"'))

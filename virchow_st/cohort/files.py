"""The small files in which the workers of a cohort meet, on a shared disk or in object storage.

Both hold the same names. Object storage has no renewal and no renaming: there a claim is an object
that is created exclusively and never written again, beside which its holder writes another one, the
``NAME.TOKEN`` of its own, again and again. A holder that was taken for lost and is not can thus
bring no claim back that was removed since, and write into nobody else's.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Protocol, TypeVar

from virchow_st.cloud import storage
from virchow_st.cloud.place import Url
from virchow_st.errors import ConfigError, StorageError, to_write_or

S = TypeVar("S")
T = TypeVar("T")


class Files(Protocol):
    """Files by their names from a folder, such as ``claims/P1@1``.

    Every method raises a `VirchowSTError` where the disk or the storage fails.
    """

    def make(self, *folders: str) -> None:
        """Make the folders, and see that the place does what claims need."""

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, without it."""

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if it is not there."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file, which is there as a whole or not at all, and for good on return."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def each(self, function: Callable[[S], T], values: Sequence[S]) -> list[T]:
        """Call a function that reads a file with each value, several at once where that pays."""

    # --- claims ---------------------------------------------------------------------------------

    def claim(self, name: str, content: bytes) -> bool:
        """Create a claim exclusively; False if there is one."""

    def seen(self, name: str) -> tuple[bytes, object] | None:
        """What the holder of a claim said last, and what changes with each renewal."""

    def renew(self, name: str) -> bool:
        """Renew a claim of this process; False if it is gone."""

    def say(self, name: str, content: bytes) -> None:
        """Give a claim of this process another content."""

    def drop(self, name: str) -> None:
        """Remove a claim, of this process or another."""


def files_at(folder: Path) -> Files:
    """The files of a folder on disk or below a URL."""
    return FilesInStorage(folder) if isinstance(folder, Url) else FilesOnDisk(folder)


class FilesOnDisk:
    """Files on a disk that all workers share; see `Files`.

    Args:
        folder: made by `make`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make(self, *folders: str) -> None:
        """Make the folders."""
        with self._refusing():
            for name in folders:
                (self._folder / name).mkdir(parents=True, exist_ok=True)

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder that are whole."""
        with self._refusing():
            return [name for name in os.listdir(self._folder / folder) if name[0] != "."]

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if it cannot be read."""
        try:
            return (self._folder / name).read_bytes()
        except OSError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file aside, sync and rename it."""
        self._replace(name, content, is_synced=True)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._refusing():
            (self._folder / name).unlink(missing_ok=True)

    def each(self, function: Callable[[S], T], values: Sequence[S]) -> list[T]:
        """Call the function with one value after another."""
        return [function(value) for value in values]

    def claim(self, name: str, content: bytes) -> bool:
        """Create a file exclusively, which every shared file system does for all its nodes."""
        with self._refusing():
            try:
                descriptor = os.open(
                    self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644
                )
            except FileExistsError:
                return False
            try:
                os.write(descriptor, content)
            finally:
                os.close(descriptor)
            return True

    def seen(self, name: str) -> tuple[bytes, object] | None:
        """Content and time of a file."""
        # Opened anew each time: opening is when a network file system looks at its server.
        try:
            with open(self._folder / name, "rb") as opened:
                return opened.read(), os.fstat(opened.fileno()).st_mtime_ns
        except OSError:
            return None

    def renew(self, name: str) -> bool:
        """Touch a file."""
        with self._refusing():
            try:
                os.utime(self._folder / name)
            except FileNotFoundError:
                return False
            return True

    def say(self, name: str, content: bytes) -> None:
        """Write a file aside and rename it."""
        self._replace(name, content, is_synced=False)

    def drop(self, name: str) -> None:
        """Remove a file."""
        self.remove(name)

    def _replace(self, name: str, content: bytes, is_synced: bool) -> None:
        path = self._folder / name
        aside = path.with_name(f".{uuid.uuid4().hex}")
        with self._refusing():
            try:
                with open(aside, "wb") as opened:
                    opened.write(content)
                    if is_synced:
                        opened.flush()
                        os.fsync(opened.fileno())
                os.replace(aside, path)
            except OSError:
                aside.unlink(missing_ok=True)
                raise

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise ConfigError(
                f"{self._folder}: cannot be written ({e.strerror}); {to_write_or(e)}"
            ) from None


class FilesInStorage:
    """Files as objects, of which those of the claims are created exclusively; see `Files`.

    Args:
        folder: what their URLs begin with.
    """

    def __init__(self, folder: Url) -> None:
        self._folder = folder
        self._held: dict[str, tuple[bytes, bytes]] = {}  # token and content of claims
        # A renewal on its way must not arrive after the claim was given back or removed.
        self._renewing = RLock()

    def make(self, *folders: str) -> None:
        """See that an object that is there is not created again; there are no folders to make."""
        name = f"probe-{uuid.uuid4().hex}"
        is_new, is_again = (storage.create(content, self._at(name)) for content in (b"1", b"2"))
        self.remove(name)
        if not is_new or is_again:
            raise StorageError(
                f"{self._folder}: expected storage that creates an object only where there is none "
                "(If-None-Match); it wrote one over another; put the list on a disk that all "
                "workers share"
            )

    def names(self, folder: str) -> list[str]:
        """Names of the objects below a folder."""
        return list(storage.below(self._at(folder)))

    def read(self, name: str) -> bytes | None:
        """The content of an object; None if there is none."""
        return storage.read_small(self._at(name))

    def write(self, name: str, content: bytes) -> None:
        """Write an object, which is there as a whole or not at all."""
        storage.send_bytes(content, self._at(name))

    def remove(self, name: str) -> None:
        """Delete an object, if it is there."""
        storage.delete([self._at(name)])

    def each(self, function: Callable[[S], T], values: Sequence[S]) -> list[T]:
        """Call the function with several values at once."""
        return storage.together(function, values)

    def claim(self, name: str, content: bytes) -> bool:
        """Create an object exclusively, with a token by which its holder knows it."""
        token = uuid.uuid4().hex.encode()
        if not storage.create(_joined(content, token), self._at(name)):
            return False
        self._held[name] = token, content
        return True

    def seen(self, name: str) -> tuple[bytes, object] | None:
        """What the holder of a claim wrote last."""
        if (created := self.read(name)) is None:
            return None
        content, token = _parted(created)
        if token and (latest := self.read(_of_holder(name, token))) is not None:
            return _parted(latest)
        return content, token

    def renew(self, name: str) -> bool:
        """Write the holder's own object anew, if the claim is still there."""
        with self._renewing:
            token, content = self._held[name]
            if (created := self.read(name)) is None or _parted(created)[1] != token:
                return False
            self.write(_of_holder(name, token), _joined(content, uuid.uuid4().hex.encode()))
            return True

    def say(self, name: str, content: bytes) -> None:
        """Write the holder's own object with another content."""
        with self._renewing:
            self._held[name] = self._held[name][0], content
            self.renew(name)

    def drop(self, name: str) -> None:
        """Delete a claim and its holder's own object."""
        with self._renewing:
            if (created := self.read(name)) is not None:
                self.remove(_of_holder(name, _parted(created)[1]))
                self.remove(name)

    def _at(self, name: str) -> Url:
        return self._folder / name


def _joined(content: bytes, token: bytes) -> bytes:
    return content + b"\n" + token


def _parted(found: bytes) -> tuple[bytes, bytes]:
    content, _, token = found.rpartition(b"\n")
    return content, token


def _of_holder(name: str, token: bytes) -> str:
    return f"{name}.{token.decode('ascii', 'replace')}"

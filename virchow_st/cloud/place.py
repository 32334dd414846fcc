"""Places in object storage, which go wherever a path goes."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path, PosixPath

from virchow_st.errors import ConfigError

SCHEMES = ("s3", "gs", "az", "https", "http")
"""Schemes of URLs that are understood; http and https for reading only."""
_URL = re.compile(rf"^({'|'.join(SCHEMES)}):/+(?=[^/])")


class Url(PosixPath):
    """A place in object storage as a `Path`: its ``name``, ``parent`` and ``/`` are those of a URL.

    Whoever opens it as a local file finds none. Slashes that follow each other count as one, so
    that keys with an empty part cannot be named.

    Example:
        >>> url = Url("s3://bucket/slides/P1.svs")
        >>> str(url), url.name, str(url.with_name("P2.svs"))
        ('s3://bucket/slides/P1.svs', 'P1.svs', 's3://bucket/slides/P2.svs')
    """

    __slots__ = ()

    def __str__(self) -> str:
        return _URL.sub(r"\1://", super().__str__(), count=1)

    def is_absolute(self) -> bool:
        """Always: it starts from no folder."""
        return True

    @property
    def scheme(self) -> str:
        """What stands before the colon."""
        return str(self).partition(":")[0]


def place(text: str | os.PathLike[str]) -> Path:
    """A `Url` if the text is one, otherwise a `Path`.

    >>> type(place("s3://bucket/a.svs")).__name__, place("a.svs").name
    ('Url', 'a.svs')
    """
    found = os.fspath(text)
    return Url(found) if _URL.match(found) else Path(found)


def place_in(folder: Path, text: str) -> Path:
    """A place that a list of slides names: a URL, or a path from the list's folder.

    Of a list in object storage that folder is there too; ``..`` leads up, at most to the bucket.

    >>> str(place_in(Path("study"), "a.svs")), str(place_in(Path("study"), "s3://b/a.svs"))
    ('study/a.svs', 's3://b/a.svs')
    >>> str(place_in(Url("s3://b/lists"), "../a.svs")), str(place_in(Url("s3://b/lists"), "/a.svs"))
    ('s3://b/a.svs', '/a.svs')
    """
    found = place(os.path.expanduser(text))
    if isinstance(found, Url) or found.is_absolute():
        return found
    if isinstance(folder, Url):
        scheme, _, rest = str(folder).partition("://")
        bucket, _, key = rest.partition("/")
        return Url(f"{scheme}://{bucket}{posixpath.normpath(f'/{key}/{found}')}")
    return folder / found


def name_from(folder: Path, path: Path) -> str:
    """The name of a place in a list of slides: a URL, or the path from the list's folder.

    >>> name_from(Path("study"), Path("a.svs")), name_from(Url("s3://b/lists"), Path("/a.svs"))
    ('../a.svs', '/a.svs')
    """
    if isinstance(path, Url) or isinstance(folder, Url):
        return whole_name(path)
    return os.path.relpath(path, folder)


def whole_name(path: Path) -> str:
    """A name that other places do not have: a URL, or the absolute path."""
    return str(path) if isinstance(path, Url) else os.path.abspath(path)


def check_local(values: Mapping[str, object]) -> None:
    """Refuse URLs where a path on a disk is needed.

    Args:
        values: by the name of the option or argument; a `Url` stands where URLs are understood.

    Raises:
        ConfigError: another path is a URL.
    """
    for name, value in values.items():
        for path in value if isinstance(value, tuple) else (value,):
            if type(path) is PosixPath and isinstance(url := place(path), Url):
                raise ConfigError(
                    f"{name.replace('_', '-')}: expected a path on a disk; got {url}; vst copy "
                    "copies stores and fields from and to object storage"
                )

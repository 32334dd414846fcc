"""Errors that a user can cause.

Each message is one line: the file or option, what was expected, what was found, and what to do.
"""

from __future__ import annotations

import errno

_TO_WRITE = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk space",
    errno.EFBIG: "raise the largest size of a file (ulimit -f)",
    errno.EACCES: "get the rights to it",
    errno.EPERM: "get the rights to it",
    errno.EROFS: "make the disk writable",
}


class VirchowSTError(Exception):
    """Base class of all errors raised on purpose; the command line prints them in one line."""


class SlideError(VirchowSTError):
    """A Space Ranger folder or a slide image is missing, damaged or not supported."""


class StoreError(VirchowSTError):
    """A store is missing, unfinished, damaged, of another format, or incompatible with others."""


class FieldError(VirchowSTError):
    """A rate field is missing, damaged or of another format."""


class StorageError(VirchowSTError):
    """Object storage cannot be reached, refuses, or does not hold what is expected of it."""


class ConfigError(VirchowSTError):
    """An option or a configuration file has a value that cannot be used."""


def to_write(error: OSError) -> str:
    """Advice that makes a failed write possible; empty if only another path would help.

    >>> to_write(PermissionError(errno.EACCES, "Permission denied"))
    'get the rights to it'
    """
    return _TO_WRITE.get(error.errno or 0, "")


def to_write_or(error: OSError, otherwise: str = "give another path") -> str:
    """`to_write`, or other advice if that is empty."""
    return f"{step} or {otherwise}" if (step := to_write(error)) else otherwise


def to_read(error: OSError, otherwise: str) -> str:
    """Advice for a file that cannot be read; ``otherwise`` is the advice for a damaged file."""
    is_refused = error.errno in (errno.EACCES, errno.EPERM)
    return "get the rights to it" if is_refused else otherwise

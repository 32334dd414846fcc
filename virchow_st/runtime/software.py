"""Versions of installed packages, for provenance and for ``vst doctor``."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed, in the order given.

    Args:
        packages: names as ``pip install`` takes them.

    Example:
        >>> list(versions(["numpy", "no-such-package"]))
        ['numpy']
    """
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

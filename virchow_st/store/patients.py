"""Normalises the names of patients and finds names that differ only in spelling."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from virchow_st.names import check_plain
from virchow_st.runtime.lists import strip


def patient_name(text: str) -> str:
    """A patient's name without spaces and invisible characters at its ends, in Unicode form NFC.

    Thus ``"P2 "`` and ``"P2"`` are the same patient, and so are the two encodings of an accented
    letter.

    Raises:
        ConfigError: the name contains control characters.

    Example:
        >>> patient_name(" P2 ")
        'P2'
    """
    return check_plain(unicodedata.normalize("NFC", strip(text)), "patient")


def alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of names that differ only in upper and lower case or in spaces, sorted.

    Example:
        >>> alike(["P1", "p 1", "P2"])
        [('P1', 'p 1')]
    """
    groups: dict[str, set[str]] = {}
    for name in names:
        plain = unicodedata.normalize("NFKC", name).casefold()
        groups.setdefault("".join(plain.split()), set()).add(name)
    return sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1)


def alike_warnings(names: Iterable[str]) -> list[str]:
    """One warning for each group of names that `alike` finds."""
    return [
        f"patients {' and '.join(map(repr, group))} differ only in upper and lower case or spaces; "
        f"if they are one patient, extract with one name: training and test data must not overlap"
        for group in alike(names)
    ]

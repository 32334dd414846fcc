"""Names of patients: what is left out of them, and which of them look alike."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from virchow_st.names import check_plain
from virchow_st.runtime.lists import strip


def patient_name(text: str) -> str:
    """The name without blanks and invisible characters at its ends, its accents composed.

    ``"P2 "`` and ``"P2"`` are one patient, and so are the two ways to encode an accented letter.
    Raises `ConfigError` for one with control characters.
    """
    return check_plain(unicodedata.normalize("NFC", strip(text)), "patient")


def alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of different names that differ by upper and lower case or by blanks only, sorted."""
    groups: dict[str, set[str]] = {}
    for name in names:
        plain = unicodedata.normalize("NFKC", name).casefold()
        groups.setdefault("".join(plain.split()), set()).add(name)
    return sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1)


def alike_warnings(names: Iterable[str]) -> list[str]:
    """A line for each group of names that look alike."""
    return [
        f"patients {' and '.join(map(repr, group))} differ by upper and lower case or blanks only; "
        f"if they are one patient, extract with one name, or it is both trained on and tested"
        for group in alike(names)
    ]

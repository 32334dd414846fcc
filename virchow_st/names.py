"""Names given by users are data: how they are displayed, and how file names are made from them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from unicodedata import normalize

from virchow_st.errors import ConfigError

# What a terminal takes for an order, or shows in another place or order than it is written: control
# characters, line and paragraph separators, marks of the direction of writing, and lone surrogates,
# which are bytes of a command line that are no text.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
_UNSAFE = re.compile(r"[^\w.-]+")
_MOST_BYTES = 80  # of 255 that file systems take: what a picture's name adds has to fit too
# Devices on Windows, with any suffix.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def is_plain(text: str) -> bool:
    """Whether a terminal displays the text unchanged (it has no control characters)."""
    return _CONTROL.search(text) is None


def check_plain(text: str, what: str) -> str:
    """Return the text; raises `ConfigError` if a terminal would not display it unchanged."""
    if not is_plain(text):
        raise ConfigError(f"{what}: expected a name without control characters; got {text!r:.80}")
    return text


def shown(text: str) -> str:
    r"""Text for a terminal: control characters as ``\x1b``, line ends and tabs unchanged.

    >>> shown("E\x1b[31mSC")
    'E\\x1b[31mSC'
    """
    return _CONTROL.sub(lambda m: m[0] if m[0] in "\n\t" else ascii(m[0])[1:-1], text)


def file_names(names: Sequence[str]) -> list[str]:
    """A file name for each name: equal for equal names, different for different ones everywhere.

    A name of letters, digits, ``_``, ``.`` and ``-`` is its own file name; in others, every other
    character becomes ``_``. A result that is no valid file name, is too long, or equals that of
    another name (also on file systems that ignore case) gets digits of the name's hash at its end.
    No file name contains a slash or begins with a dot, so none leads to another folder.

    >>> file_names(["P5", "a/b", "S 1", "S_1"])
    ['P5', 'a_b', 'S_1-7eec045c', 'S_1']
    """
    wanted = {name: _UNSAFE.sub("_", name).strip("_") for name in names}
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(wanted, key=lambda name: (wanted[name] != name, name)):
        file, n_digits = wanted[name], 8
        while not _is_usable(file) or _key(file) in taken:
            file = f"{_cut(wanted[name])}-{_digest(name)[:n_digits]}".lstrip("-")
            n_digits *= 2  # a name may look like what was made of another
        taken.add(_key(file))
        found[name] = file
    return [found[name] for name in names]


def _is_usable(file: str) -> bool:
    if not file or file[0] in ".-" or file[-1] == "." or _DEVICES.fullmatch(file):
        return False
    return len(file.encode()) <= _MOST_BYTES


def _key(file: str) -> str:
    return normalize("NFKC", file).casefold()


def _cut(file: str) -> str:
    short = file.encode()[: _MOST_BYTES - 17].decode(errors="ignore").strip("._-")
    return "" if _DEVICES.fullmatch(short) else short


def _digest(name: str) -> str:
    return sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def shortened(text: str, most: int = 40) -> str:
    """A text of at most ``most`` characters; a longer one loses its middle.

    >>> shortened("EPCAM"), shortened("ABCDEFGHIJ", 5)
    ('EPCAM', 'AB…IJ')
    """
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 :]}"


# What a spreadsheet computes, however often it was quoted; full-width signs in East Asian editions.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")


def csv_text(text: str) -> str:
    """A name for a CSV file; a ``'`` is put before one that a spreadsheet would compute.

    >>> csv_text("=cmd"), csv_text("CD74")
    ("'=cmd", 'CD74')
    """
    return f"'{text}" if _FORMULA.match(text) else text


def csv_name(text: str) -> str:
    """The original name; the inverse of `csv_text`."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def tree_key(name: str) -> str:
    """A slide's name as a key of AnnData's ``uns``, whose files take ``/`` and ``.`` for paths.

    >>> tree_key("a/b"), tree_key("P5"), tree_key(".")
    ('a_b', 'P5', '_')
    """
    key = name.replace("/", "_")
    return key if key.strip(".") else "_" * max(len(key), 1)

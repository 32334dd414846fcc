"""Reads the small tables that people and programs write: panels, gene lists, lists of slides.

One reader serves all of them, so that files from Excel, R, pandas and 10x Genomics are read alike:
UTF-8 and UTF-16 with or without a byte order mark, any line ends, commas, semicolons or tabs,
quotes, ``#`` comments, Excel's ``sep=;`` line, blank lines and blanks around values.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from virchow_st.errors import ConfigError

_MOST_BYTES = 1 << 28  # lists are read whole; a larger file is no list that a person wrote
_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_FILES = (
    (b"PK\x03\x04", "an Excel workbook or zip archive; save it as CSV (UTF-8)"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook; save it as CSV (UTF-8)"),
    (b"\x1f\x8b", "compressed; unpack it with gunzip"),
    (b"PAR1", "a Parquet file; write it as CSV"),
    (b"\x89HDF", "an HDF5 file; write the names as text"),
)
_DELIMITERS = "\t;,"  # in this order where two are equally frequent: commas may be decimal
# What text editors and spreadsheets leave at the ends of a value, beside what `str.strip` removes:
# byte order marks of files that were joined, zero-width characters, word joiners.
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u200e\u200f\u2060\u00ad"


@dataclass(frozen=True)
class Row:
    """A line of a list.

    Attributes:
        number: of the line in the file, from 1.
        cells: values without quotes and without the blanks around them.
    """

    number: int
    cells: tuple[str, ...]


def read_rows(path: Path, what: str, data: bytes | None = None) -> list[Row]:
    """Rows of a text file of values; blank lines and comments are left out.

    Args:
        path: the file.
        what: what it should be, for messages, such as ``"a list of genes"``.
        data: the file's bytes where they have been read, as of an object; None to read them.

    Raises:
        ConfigError: the file is missing, is no text, or has a quote that is not closed.
    """
    text = _decoded(path, what, data)
    lines = list(io.StringIO(text, newline=""))  # line ends of all kinds end a line
    delimiter, first = _delimiter(lines)
    rows = []
    reader = csv.reader(_without_comments(lines, first), delimiter=delimiter)
    try:
        for cells in reader:
            if any("\n" in cell or "\r" in cell for cell in cells):
                raise ConfigError(
                    f"{path}: line {first + reader.line_num}: a quote is opened before it and not "
                    f"closed on its line; close it or take it out"
                )
            stripped = tuple(strip(cell) for cell in cells)
            if any(stripped):
                rows.append(Row(first + reader.line_num, stripped))
    except csv.Error as e:
        raise ConfigError(f"{path}: cannot be read as {what} ({e})") from None
    return rows


def read_columns(
    path: Path,
    what: str,
    columns: Sequence[str],
    optional: Sequence[str] = (),
    data: bytes | None = None,
) -> list[tuple[int, dict[str, str]]]:
    """Rows of a table whose first line names its columns, in any order and beside others.

    Args:
        path: the file.
        what: what it should be, for messages.
        columns: those that are wanted; upper and lower case are the same.
        optional: those that may be missing, which leaves their values empty.
        data: as for `read_rows`.

    Returns:
        Number of the line, and its values by column, for every line but the first.

    Raises:
        ConfigError: as `read_rows`; a column is missing or comes twice; a value is empty.
    """
    rows = read_rows(path, what, data)
    head = [name.casefold() for name in rows[0].cells] if rows else []
    for name in (*columns, *(name for name in optional if name in head)):
        if head.count(name) != 1:
            found = f"found {', '.join(map(ascii, rows[0].cells))}" if rows else "the file is empty"
            how = "comes twice" if name in head else "is missing"
            raise ConfigError(
                f"{path}: expected the columns {','.join(columns)} in the first line; {name} "
                f"{how}; {found}"
            )
    names = (*columns, *optional)
    places = [head.index(name) if name in head else len(head) for name in names]
    table = []
    for row in rows[1:]:
        values = {
            name: row.cells[place] if place < len(row.cells) else ""
            for name, place in zip(names, places, strict=True)
        }
        if empty := [name for name in columns if not values[name]]:
            raise ConfigError(
                f"{path}: line {row.number}: expected a value in every column; {empty[0]} is empty"
            )
        table.append((row.number, values))
    return table


def strip(value: str) -> str:
    """The value without blanks and invisible characters at its ends."""
    before = None
    while value != before:  # the two kinds may take turns
        before, value = value, value.strip().strip(_INVISIBLE)
    return value


def _decoded(path: Path, what: str, data: bytes | None) -> str:
    try:
        if data is None:
            with open(path, "rb") as file:
                data = file.read(_MOST_BYTES + 1)
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read as {what} ({e.strerror})") from None
    for start, remedy in _OTHER_FILES:
        if data.startswith(start):
            raise ConfigError(f"{path}: expected {what} as text; it is {remedy}")
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"{path}: expected {what}; got more than {_MOST_BYTES >> 20} MiB")
    try:
        text = data.decode(_encoding(data))
    except UnicodeDecodeError:
        raise ConfigError(
            f"{path}: expected {what} in UTF-8 or UTF-16; it has bytes of another encoding; in "
            f"Excel save it as 'CSV UTF-8', elsewhere as UTF-8"
        ) from None
    if "\0" in text:
        raise ConfigError(f"{path}: expected {what} as text; it is a binary file")
    return text


def _encoding(data: bytes) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    head = data[:4096]  # UTF-16 without a mark: every other byte of plain letters is zero
    if len(data) % 2 == 0 and head.count(0) > len(head) // 4:
        return "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
    return "utf-8"


def _without_comments(lines: Sequence[str], first: int) -> list[str]:
    """Lines from ``first`` on; a comment is left empty, so that lines keep their numbers."""
    return ["\n" if _is_comment(line) else line for line in lines[first:]]


def _is_comment(line: str) -> bool:
    return strip(line).startswith("#")


def _delimiter(lines: Sequence[str]) -> tuple[str, int]:
    """What separates the values, and the number of lines that only say so (Excel's ``sep=;``)."""
    for i, line in enumerate(lines):
        bare = strip(line)
        if bare.casefold().startswith("sep=") and len(bare) == 5:
            return bare[4], i + 1
        if bare.casefold() == "sep=":  # of a tab, which was stripped
            return "\t", i + 1
        if bare and not _is_comment(line):
            break
    values = [line for line in lines if strip(line) and not _is_comment(line)]
    # The first line decides, since it may name the columns; where it has none, how many lines do.
    for counted in (values[:1], values):
        times = {d: sum(_outside_quotes(line).count(d) for line in counted) for d in _DELIMITERS}
        if any(times.values()):
            return max(_DELIMITERS, key=lambda d: times[d]), 0
    return ",", 0


def _outside_quotes(line: str) -> str:
    return "".join(line.split('"')[::2])

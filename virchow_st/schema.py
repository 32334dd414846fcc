"""Reads JSON, TOML and tables, and checks their content against a schema.

A schema is a type: a `TypedDict` for an object, whose keys are required unless `NotRequired`
(further keys are allowed); ``list``, ``dict``, ``tuple``, ``Literal``, unions; ``str``, ``int``,
``float``, ``bool``; and any of these with conditions, ``Annotated[int, Within(0, 9)]``. A value
that does not fit raises `MismatchError` with its place, what was expected and what was found. The
readers turn this into a one-line error that also names the file and what to do.

Strings must be encodable as UTF-8, whole numbers must fit into 64 bits, and numbers must be finite.
``true`` is not accepted as 1. A whole number is accepted where a number is expected.
"""

from __future__ import annotations

import csv
import io
import json
import math
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Protocol,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from virchow_st.errors import ConfigError, VirchowSTError, to_read
from virchow_st.names import is_plain

_MOST = 1 << 63
_SHOWN = 60  # characters of a wrong value that a message repeats
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false",
          list: "a list", dict: "an object", NoneType: "null"}  # fmt: skip


class MismatchError(ValueError):
    """A value does not fit its schema."""


class Condition(Protocol):
    """A requirement on a value beyond its type."""

    def allows(self, value: Any) -> bool:
        """Whether a value of the right type meets the requirement."""

    def __str__(self) -> str:
        """The requirement in words, for an error."""


@dataclass(frozen=True)
class Within:
    """A number from ``low`` to ``high``, both included."""

    low: float
    high: float = math.inf

    def allows(self, value: Any) -> bool:
        """See `Condition`."""
        return bool(self.low <= value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"at least {self.low}"
        return f"{self.low} to {self.high}"


@dataclass(frozen=True)
class Length:
    """A list, an object or a text with ``low`` to ``high`` elements."""

    low: int
    high: float = math.inf

    def allows(self, value: Any) -> bool:
        """See `Condition`."""
        return bool(self.low <= len(value) <= self.high)

    def __str__(self) -> str:
        number = self.low if self.high == self.low else Within(self.low, self.high)
        return f"{number} parts"


class _Plain:
    def allows(self, value: Any) -> bool:
        return bool(value.strip()) and is_plain(value)

    def __str__(self) -> str:
        return "a name without control characters"


Count = Annotated[int, Within(0)]
Name = Annotated[str, _Plain()]
"""Name of a person, slide or file: not empty, and without control characters."""


def check(value: Any, kind: Any, where: str = "") -> Any:
    """Check a value against a schema and return it unchanged.

    Args:
        value: as returned by `json.loads` or `tomllib.loads`.
        kind: its schema.
        where: name of the value in errors.

    Raises:
        MismatchError: the value does not fit.
    """
    origin = get_origin(kind)
    if origin is Annotated:
        base, *conditions = get_args(kind)
        check(value, base, where)
        for condition in conditions:
            if not condition.allows(value):
                raise _mismatch(where, str(condition), value)
    elif origin in (Union, UnionType):
        _check_union(value, get_args(kind), where)
    elif origin is Literal:
        if not any(type(value) is type(c) and value == c for c in get_args(kind)):
            raise _mismatch(where, " or ".join(map(repr, get_args(kind))), value)
    elif origin in (list, tuple):
        _check_items(value, origin, get_args(kind), where)
    elif origin is dict:
        key_kind, value_kind = get_args(kind)
        for key, item in _of(value, dict, where).items():
            check(key, key_kind, f"{where}: key")
            check(item, value_kind, _inside(where, key))
    elif is_typeddict(kind):
        _check_object(value, kind, where)
    elif kind is not Any:
        _check_scalar(value, NoneType if kind is None else kind, where)
    return value


def _check_union(value: Any, kinds: tuple[Any, ...], where: str) -> None:
    others = [kind for kind in kinds if kind is not NoneType]
    if value is None and len(others) < len(kinds):
        return
    if len(others) == 1:  # whose own message is more specific
        check(value, others[0], where)
        return
    for kind in others:
        try:
            check(value, kind, where)
        except MismatchError:
            continue
        return
    raise _mismatch(where, " or ".join(_word(kind) for kind in kinds), value)


def _check_items(value: Any, origin: type, kinds: tuple[Any, ...], where: str) -> None:
    if origin is tuple and type(value) is tuple:
        value = list(value)
    items = _of(value, list, where)
    if origin is tuple and kinds[-1] is not Ellipsis:
        if len(items) != len(kinds):
            raise _mismatch(where, f"{len(kinds)} values", value)
        for i, (item, kind) in enumerate(zip(items, kinds, strict=True)):
            check(item, kind, f"{where}[{i}]")
        return
    for i, item in enumerate(items):
        check(item, kinds[0], f"{where}[{i}]")


@lru_cache(maxsize=256)
def _keys(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Type of each key of a TypedDict, and whether the key is required."""
    found = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        optional = get_origin(hint) is NotRequired
        found[name] = (get_args(hint)[0] if optional else hint), not optional
    return found


def _check_object(value: Any, kind: Any, where: str) -> None:
    content = _of(value, dict, where)
    for name, (inner, required) in _keys(kind).items():
        if name in content:
            check(content[name], inner, _inside(where, name))
        elif required:
            raise MismatchError(f"{_inside(where, name)} is missing")


def _check_scalar(value: Any, kind: Any, where: str) -> None:
    if kind is float and type(value) is int:
        kind = int
    if type(value) is not kind:
        raise _mismatch(where, _word(kind), value)
    if kind is float and not math.isfinite(value):
        raise _mismatch(where, "a finite number", value)
    if kind is int and not -_MOST <= value < _MOST:
        raise _mismatch(where, "a whole number of 64 bits", value)
    if kind is str and any("\ud800" <= c <= "\udfff" for c in value):
        raise _mismatch(where, "text", value)


def _of(value: Any, kind: type, where: str) -> Any:
    if type(value) is not kind:
        raise _mismatch(where, _word(kind), value)
    return value


def _word(kind: Any) -> str:
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return _WORDS.get(get_origin(kind) or kind, "an object")


def _inside(where: str, name: Any) -> str:
    return f"{where}.{name:.{_SHOWN}}" if where else f"{name:.{_SHOWN}}"


def _mismatch(where: str, expected: str, found: Any) -> MismatchError:
    what = f"{_WORDS[type(found)]}" if isinstance(found, dict | list) else f"{found!r:.{_SHOWN}}"
    prefix = f"{where}: " if where else ""
    return MismatchError(f"{prefix}expected {expected}; got {what}")


# --- files --------------------------------------------------------------------------------------

Error = type[VirchowSTError]
Also = Callable[[Any], None]
"""Checks what a type cannot express, such as two lists of equal length; raises `ValueError`."""


def parse_json(text: str) -> Any:
    """Parse JSON strictly, without NaN; `ValueError` for anything else."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:  # from brackets nested without end
        raise ValueError("nested too deep") from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def read_json(
    path: Path,
    kind: Any,
    remedy: str,
    *,
    missing: str | None = None,
    error: Error = ConfigError,
    also: Also | None = None,
) -> Any:
    """Read a JSON file and check its content.

    Args:
        path: of the file.
        kind: its schema.
        remedy: advice for a damaged or foreign file.
        missing: advice for a missing file; the remedy if None.
        error: class of the error to raise.
        also: further check of the content.

    Raises:
        ``error``: one line with the file, what was expected, what was found and the remedy.
    """
    text = read_text(path, remedy, missing=missing, error=error)
    try:
        content = parse_json(text)
    except ValueError as e:
        raise error(f"{path}: cannot be read as JSON ({e}); {remedy}") from None
    return _checked(content, kind, path, remedy, error, also)


def read_json_lines(path: Path, kind: Any, remedy: str, *, missing: str | None = None) -> list[Any]:
    """Read a file with one JSON value per line; see `read_json`."""
    found = []
    text = read_text(path, remedy, missing=missing).removesuffix("\n")
    for n, line in enumerate(text.split("\n") if text else (), start=1):
        try:
            found.append(check(parse_json(line), kind))
        except ValueError as e:
            raise ConfigError(f"{path}: line {n}: {e}; {remedy}") from None
    return found


def read_toml(path: Path, remedy: str = "give a TOML file") -> dict[str, Any]:
    """Read a TOML file; its content is checked by `virchow_st.settings.from_toml`."""
    text = read_text(path, remedy)
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise ConfigError(f"{path}: expected TOML; {e}") from None


def read_table(
    path: Path,
    columns: Mapping[str, Callable[[str], Any]],
    remedy: str,
    *,
    delimiter: str = ",",
    missing: str | None = None,
    also: Also | None = None,
    only: bool = False,
    optional: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Read a table with a header; returns a dictionary by column for each row.

    Args:
        path: of a CSV or TSV file.
        columns: name → parser of a field's text; it raises `ValueError` for an invalid text.
        remedy, missing, also: see `read_json`; ``also`` gets all rows.
        delimiter: separator of fields.
        only: require exactly these columns in this order, for a table that will be rewritten.
        optional: columns that may be missing; their fields are then empty.

    Raises:
        ConfigError: a column is missing or not expected, a row has too few or too many fields, or a
            field cannot be parsed.
    """
    text = read_text(path, remedy, missing=missing)
    try:
        rows = list(_rows(text, columns, delimiter, only, optional))
        if also is not None:
            also(rows)
    except (ValueError, csv.Error) as e:
        raise ConfigError(f"{path}: {e}; {remedy}") from None
    return rows


def _rows(
    text: str,
    columns: Mapping[str, Callable[[str], Any]],
    delimiter: str,
    only: bool,
    optional: Collection[str],
) -> Iterator[dict[str, Any]]:
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    head = next(lines, [])
    if lacking := [name for name in columns if name not in head and name not in optional]:
        raise MismatchError(f"column {lacking[0]!r} is missing")
    if len(set(head)) < len(head):
        raise MismatchError("a column comes twice")
    if only and head != list(columns):
        raise MismatchError(f"expected the columns {','.join(columns)}; got {','.join(head)!a:.80}")
    for fields in lines:
        if len(fields) != len(head):
            raise MismatchError(
                f"line {lines.line_num}: expected {len(head)} fields; got {len(fields)}"
            )
        row = dict(zip(head, fields, strict=True))
        try:
            yield {name: of(row.get(name, "")) for name, of in columns.items()}
        except (ValueError, OverflowError) as e:
            raise MismatchError(f"line {lines.line_num}: {e}") from None


def read_text(
    path: Path, remedy: str, *, missing: str | None = None, error: Error = ConfigError
) -> str:
    """Read a UTF-8 text file; see `read_json`."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise error(f"{path}: not found; {missing or remedy}") from None
    except UnicodeDecodeError as e:
        raise error(f"{path}: cannot be read as text ({e}); {remedy}") from None
    except OSError as e:
        raise error(f"{path}: cannot be read ({e.strerror}); {to_read(e, remedy)}") from None


def _checked(
    content: Any, kind: Any, path: Path, remedy: str, error: Error, also: Also | None
) -> Any:
    try:
        check(content, kind)
        if also is not None:
            also(content)
    except ValueError as e:
        raise error(f"{path}: {e}; {remedy}") from None
    return content

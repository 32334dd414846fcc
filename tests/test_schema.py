"""Content that does not fit its schema is refused in one line that says where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virchow_st.errors import ConfigError, VirchowSTError
from virchow_st.schema import (
    Count,
    Length,
    MismatchError,
    Name,
    Within,
    check,
    read_json,
    read_json_lines,
    read_table,
    read_toml,
)


def told(call: Callable[[], Any]) -> str:
    """The message of the error that a call raises, of those that are raised on purpose."""
    try:
        call()
    except (MismatchError, VirchowSTError) as error:
        return str(error)
    return ""


class Inner(TypedDict):
    name: Name
    share: Annotated[float, Within(0, 1)]


class Outer(TypedDict):
    format: Literal["x/1"]
    n: Count
    pairs: list[tuple[int, float]]
    inner: dict[str, Inner]
    side: Annotated[list[int], Length(2, 2)]
    score: float | None
    more: NotRequired[str | int]


GOOD: Any = {
    "format": "x/1", "n": 3, "pairs": [[1, 2], [3, 4.5]], "inner": {"a": {"name": "A", "share": 1}},
    "side": [1, 2], "score": None, "unknown": object,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x/2"}, "format: expected 'x/1'; got 'x/2'"),
        ({"n": -1}, "n: expected at least 0; got -1"),
        ({"n": True}, "n: expected a whole number; got True"),
        ({"n": 1.0}, "n: expected a whole number; got 1.0"),
        ({"n": 1 << 63}, "n: expected a whole number of 64 bits; got 9223372036854775808"),
        ({"pairs": [[1, 2], [1]]}, "pairs[1]: expected 2 values; got a list"),
        ({"pairs": {}}, "pairs: expected a list; got an object"),
        ({"inner": {"a": {"share": 0}}}, "inner.a.name is missing"),
        ({"inner": {"a": {"name": "\x1b", "share": 0}}}, "inner.a.name: expected a name without"),
        ({"inner": {"a": {"name": "A", "share": 1e400}}}, "inner.a.share: expected a finite"),
        ({"side": [1]}, "side: expected 2 parts; got a list"),
        ({"score": "0.3"}, "score: expected a number; got '0.3'"),
        ({"more": []}, "more: expected text or a whole number; got a list"),
        ({"more": "\ud800"}, "more: expected text or a whole number"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    assert check(GOOD, Outer) is GOOD
    with pytest.raises(MismatchError) as error:
        check(GOOD | change, Outer)
    assert str(error.value).startswith(message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@given(JSON, st.sampled_from(sorted(GOOD)))
def test_anything_else_is_a_mismatch_and_no_other_error(value: Any, key: str) -> None:
    for content in (value, GOOD | {key: value}):
        assert len(told(lambda content=content: check(content, Outer))) < 300


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"null", b"\xff", b"[" * 100_000, b'{"format": NaN}', b"1" * 5000, b"\0"],
)
def test_files_that_are_something_else_are_refused_in_one_line(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    readers = (
        lambda: read_json(path, Outer, "do so"),
        lambda: read_table(path, {"a": str}, "do so"),
        lambda: read_toml(path),
        lambda: read_json_lines(path, Outer, "do so"),
    )
    for read in readers:
        if message := told(read):
            assert str(path) in message
            assert "\n" not in message
    with pytest.raises(ConfigError, match="do so"):
        read_json(path, Outer, "do so")
    with pytest.raises(ConfigError, match="not found; run it"):
        read_json(tmp_path / "none", Outer, "do so", missing="run it")


def test_tables_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for text, message in [
        ("a,c\n1,2\n", "column 'b' is missing"),
        ("a,b\n1\n", "line 2: expected 2 fields; got 1"),
        ("a,b\n1,2,3\n", "line 2: expected 2 fields; got 3"),
        ("a,b\n1,x\n", "line 2: invalid literal"),
        ("a,b,b\n1,2,3\n", "a column comes twice"),
        ('a,b\n1,"2', "unexpected end of data"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_table(path, {"a": str, "b": int}, "write it anew")
    path.write_text('b,a\r\n1,"x\u0085\ny"\r\n', "utf-8")
    assert read_table(path, {"a": str, "b": int}, "") == [{"a": "x\u0085\ny", "b": 1}]


def test_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    path.write_text("".join(json.dumps({"name": n, "share": 0.5}) + "\n" for n in "ab"))
    assert [line["name"] for line in read_json_lines(path, Inner, "again")] == ["a", "b"]
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ConfigError, match=r"l\.jsonl: line 2: .*; again"):
        read_json_lines(path, Inner, "again")

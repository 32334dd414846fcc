"""Any name becomes a file name of its own, and no name controls the terminal."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from virchow_st.names import csv_name, csv_text, file_names, is_plain, shown

HOSTILE = ["a/b", "../../x", "/etc/passwd", "S 1", "S_1", "p" * 300, "p" * 301, "N\0UL",
           "E\x1b[31m", "", " ", ".", "..", ".hidden", "-rf", "con", "NUL.txt", "a:b", "a\\b",
           "p1", "P1",
           "\ud800",
           "caf\u00e9", "cafe\u0301", "S_1-7eec045c"]  # fmt: skip


def test_names_that_are_safe_are_their_own_file_names() -> None:
    safe = ["P1", "P-2", "HNSCC_07.b", "Gyn\u00e4", "0"]
    assert file_names(safe) == safe
    assert file_names(["a/b"]) == ["a_b"]
    assert file_names(["S 1"]) == ["S_1"]
    assert file_names(["S 1", "S_1"])[1] == "S_1"


@given(st.lists(st.sampled_from(HOSTILE) | st.text(max_size=400), max_size=12))
def test_any_names_become_different_files_in_one_folder(names: list[str]) -> None:
    files = file_names(names)
    by_name = dict(zip(names, files, strict=True))
    assert [by_name[name] for name in names] == files  # the same for the same
    assert len({file.casefold() for file in by_name.values()}) == len(by_name)
    for file in files:
        assert Path(file).name == file
        assert file[0] not in ".-"
        assert file[-1] not in ". "
        assert is_plain(file)
        assert not set(file) & set('/\\:*?"<>|')
        assert 0 < len(file.encode()) <= 100
        assert file.partition(".")[0].upper() not in {"CON", "PRN", "AUX", "NUL", "COM1", "LPT1"}


def test_they_can_be_written_together(tmp_path: Path) -> None:
    for file in file_names(HOSTILE):
        (tmp_path / f"multiscale_{file}_{file}.png.part").write_text("")
    assert len(list(tmp_path.iterdir())) == len(HOSTILE)


@given(st.text(max_size=50))
def test_what_is_shown_is_plain_and_the_rest_stays(text: str) -> None:
    assert is_plain(shown(text).replace("\n", "").replace("\t", ""))
    if is_plain(text):
        assert shown(text) == text


@given(st.text(alphabet="'=+-@\t\r\n＝＠1A", max_size=6))
def test_no_csv_field_is_a_formula_and_every_name_comes_back(name: str) -> None:
    assert csv_name(csv_text(name)) == name
    assert csv_text(name)[:1] not in set("=+-@\t\r\n＝＠")

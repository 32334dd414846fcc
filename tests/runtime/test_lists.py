"""One reader for the small tables that people, spreadsheets and programs write."""

from __future__ import annotations

import pytest

from virchow_st.errors import ConfigError
from virchow_st.runtime.lists import read_columns, read_rows, strip

TABLE = 'patient,image\nP1,"a, b.tif"\nP2,c.tif\n'
CELLS = [("patient", "image"), ("P1", "a, b.tif"), ("P2", "c.tif")]


def cells(path):
    return [row.cells for row in read_rows(path, "a list")]


@pytest.mark.parametrize(
    "data",
    [
        TABLE.encode(),
        TABLE.encode("utf-8-sig"),
        TABLE.encode("utf-16"),  # what Excel calls Unicode text
        b"\xfe\xff" + TABLE.encode("utf-16-be"),
        TABLE.encode("utf-16-le"),  # without a mark
        TABLE.encode("utf-16-be"),
        TABLE.encode("utf-32"),
        TABLE.replace("\n", "\r\n").encode(),
        TABLE.replace("\n", "\r").encode(),  # old Macs
        TABLE.rstrip("\n").encode(),
        TABLE.replace('"a, b.tif"', "a, b.tif").replace(",", ";").replace("a;", "a,").encode(),
        TABLE.replace('"a, b.tif"', "a, b.tif").replace(",", "\t").replace("a\t", "a,").encode(),
        ("sep=,\n" + TABLE).encode(),
        ("# written by hand\n\n" + TABLE).encode(),
        ("\n  # indented\n" + TABLE + "# the end\n\n,,\n").encode(),
        b'"patient","image"\n"P1","a, b.tif"\n"P2","c.tif"\n',
        b"\xef\xbb\xbf"
        + 'patient , image\n P1 ,"a, b.tif "\nP2\u00a0,\u200bc.tif\ufeff\n'.encode(),
    ],
)
def test_whoever_wrote_it_the_cells_are_the_same(tmp_path, data):
    (tmp_path / "t.csv").write_bytes(data)
    assert cells(tmp_path / "t.csv") == CELLS


def test_excels_line_says_what_separates(tmp_path):
    for separator, name in ((";", "sep=;"), ("\t", "sep=\t"), ("|", "SEP=|")):
        (tmp_path / "t.csv").write_text(f"{name}\r\na,b{separator}c\r\n", "utf-16", newline="")
        assert cells(tmp_path / "t.csv") == [("a,b", "c")]


def test_decimal_commas_do_not_separate(tmp_path):
    (tmp_path / "t.csv").write_text("EPCAM;0,5\nPIGR;1,25\n", "utf-8")
    assert cells(tmp_path / "t.csv") == [("EPCAM", "0,5"), ("PIGR", "1,25")]


def test_a_quoted_number_sign_is_no_comment(tmp_path):
    (tmp_path / "t.csv").write_text('patient,n\n#P0,1\n"#1",2\n', "utf-8")
    assert cells(tmp_path / "t.csv") == [("patient", "n"), ("#1", "2")]


def test_lines_are_numbered_as_an_editor_does(tmp_path):
    (tmp_path / "t.csv").write_text("sep=,\n# c\n\na,b\n#\nc,d\n", "utf-8")
    assert [row.number for row in read_rows(tmp_path / "t.csv", "a list")] == [4, 6]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"PK\x03\x04rest", "it is an Excel workbook or zip archive; save it as CSV"),
        (b"\xd0\xcf\x11\xe0rest", "it is an Excel workbook; save it as CSV"),
        (b"\x1f\x8b\x08", "it is compressed; unpack it"),
        (b"PAR1....", "it is a Parquet file"),
        ("Müller,a.tif\n".encode("cp1252"), "bytes of another encoding; in Excel save it as 'CSV"),
        (b"\x00\x01\x02abc\xff", "another encoding"),
        (b"abc\0def\n" * 3, "it is a binary file"),
        (b'a,b\n"c,d\ne,f\n', "line 3: a quote is opened before it and not closed"),
    ],
)
def test_what_is_no_list_is_refused_with_the_way_out(tmp_path, data, reason):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(ConfigError, match=r"t\.csv: .*" + reason):
        read_rows(tmp_path / "t.csv", "a list of genes")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.csv: cannot be read as a list \(No such file"):
        read_rows(tmp_path / "no.csv", "a list")


def test_columns_by_name_in_any_order_and_case(tmp_path):
    (tmp_path / "t.csv").write_text("Image;note;PATIENT\na.tif;;P1\nb.tif;x;P2\n", "utf-8-sig")
    found = read_columns(tmp_path / "t.csv", "a list of slides", ("patient", "image"))
    assert found == [
        (2, {"patient": "P1", "image": "a.tif"}),
        (3, {"patient": "P2", "image": "b.tif"}),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "patient is missing; the file is empty"),
        ("patient\nP1\n", "image is missing; found 'patient'"),
        ("pat\u200bient,image\nP1,a\n", r"patient is missing; found 'pat\\u200bient', 'image'"),
        ("patient,image,Image\nP1,a,b\n", "image comes twice"),
        ("patient,image\nP1,a\n\nP2\n", "line 4: expected a value in every column; image is empty"),
        ("patient,image\nP1, \u00a0\n", "line 2: .* image is empty"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path, text, reason):
    (tmp_path / "t.csv").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=reason):
        read_columns(tmp_path / "t.csv", "a list of slides", ("patient", "image"))


def test_strip_takes_off_what_cannot_be_seen():
    assert strip(" \u200b \ufeffEPCAM\u00a0\u200b ") == "EPCAM"
    assert strip("a\u200bb c") == "a\u200bb c"

"""Where the parts of a slide may lie, what lies beside them, and the table of bins as CSV."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from tiny_slide import TinySlide

from virchow_st.errors import SlideError
from virchow_st.slide.space_ranger import find_files
from virchow_st.slide.visium_hd import VisiumHDSlide

SQUARE = Path("binned_outputs/square_002um")
NAMES = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres",
         "pxl_col_in_fullres"]  # fmt: skip


@pytest.fixture
def slide(tmp_path):
    """A folder that holds ``outs``, as Space Ranger writes it."""
    folder = tmp_path / "P1"
    folder.mkdir()
    TinySlide().write(folder / "outs")
    return folder


def same_slide(a, b):
    np.testing.assert_array_equal(a.tissue_mask, b.tissue_mask)
    np.testing.assert_allclose(a.homography.matrix, b.homography.matrix, rtol=1e-9)
    assert a.genes == b.genes


@pytest.mark.parametrize(
    "given", ["", "outs", "outs/binned_outputs", "outs/binned_outputs/square_002um"]
)
def test_every_level_leads_to_the_bins(slide, given):
    assert find_files(slide / given, "filtered").folder == slide / "outs" / SQUARE


def test_prefixed_download_and_renamed_outs(slide):
    (slide / "outs").rename(slide / "P1_outs")
    assert find_files(slide, "filtered").folder == slide / "P1_outs" / SQUARE
    (slide / "P1_outs").rename(slide / "spaceranger_run")
    assert find_files(slide, "filtered").folder == slide / "spaceranger_run" / SQUARE


def test_no_walk_of_the_tree(slide, tmp_path, monkeypatch):
    """A folder above several slides is refused without a look below its own folders' folders."""
    shutil.copytree(slide, tmp_path / "P2")
    patterns = []
    glob = Path.glob

    def watched(self, pattern, **kwargs):
        patterns.append(pattern)
        return glob(self, pattern, **kwargs)

    monkeypatch.setattr(Path, "glob", watched)
    with pytest.raises(SlideError, match=r"expected square_002um.*found no binned output; give"):
        find_files(tmp_path, "filtered")
    assert patterns
    assert not [pattern for pattern in patterns if "**" in pattern]
    assert max(pattern.count("/") for pattern in patterns) == 2


def test_several_slides_one_level_down_are_named(slide):
    shutil.copytree(slide / "outs", slide / "old_outs")
    with pytest.raises(SlideError, match=r"expected one square_002um; found .*old_outs.*, .*outs"):
        find_files(slide, "filtered")


def test_coarser_bins_alone_are_named(slide):
    shutil.move(slide / "outs" / SQUARE, slide / "outs" / "binned_outputs" / "square_008um")
    for given in (slide, slide / "outs", slide / "outs" / "binned_outputs"):
        with pytest.raises(SlideError, match="found only square_008um; give the outs"):
            find_files(given, "filtered")


def test_hidden_files_are_passed_over(slide, tmp_path):
    """MacOS writes ``._NAME`` beside every NAME, and folders for its own use."""
    whole = VisiumHDSlide.open(slide)
    square = slide / "outs" / SQUARE
    for path in list(square.rglob("*")):
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\26\7")
    (square / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    shutil.copytree(slide / "outs" / "binned_outputs", slide / ".Trash" / "binned_outputs")
    (slide / "outs" / "._binned_outputs").mkdir()
    assert find_files(slide, "filtered").positions.name == "tissue_positions.parquet"
    same_slide(VisiumHDSlide.open(slide), whole)


# --- positions as text ----------------------------------------------------------------------------


def as_text(slide, name, **how):
    """Put the positions as text into the place of the Parquet file."""
    path = slide / "outs" / SQUARE / "spatial" / "tissue_positions.parquet"
    table = pq.read_table(path)
    assert table.column_names == NAMES
    pa_csv.write_csv(table, path.with_name(name), pa_csv.WriteOptions(**how))
    path.unlink()
    return path.with_name(name)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("tissue_positions.csv", {}),
        ("tissue_positions.csv", {"quoting_style": "none"}),
        ("P1_tissue_positions.csv", {"delimiter": "\t", "quoting_style": "none"}),
        ("tissue_positions.csv", {"delimiter": ";"}),
        ("tissue_positions_list.csv", {"include_header": False}),
        ("tissue_positions_list.csv", {"include_header": False, "quoting_style": "none"}),
    ],
)
def test_positions_as_text_are_those_of_the_parquet_file(slide, name, how):
    whole = VisiumHDSlide.open(slide)
    as_text(slide, name, **how)
    same_slide(VisiumHDSlide.open(slide), whole)


def test_other_columns_another_order_and_a_mark_do_not_matter(slide):
    whole = VisiumHDSlide.open(slide)
    path = as_text(slide, "tissue_positions.csv")
    table = pa_csv.read_csv(path).select(NAMES[::-1]).append_column("x", pa.array(["s"] * 21_000))
    pa_csv.write_csv(table, path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    same_slide(VisiumHDSlide.open(slide), whole)


def test_parquet_goes_first(slide):
    path = slide / "outs" / SQUARE / "spatial" / "tissue_positions.csv"
    path.write_text("of an older run\n")
    assert find_files(slide, "filtered").positions.suffix == ".parquet"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("barcode,in_tissue,array_row\ns,1,0\n", "array_col, pxl_row_in_fullres.* missing"),
        ("s_002um_00000_00000-1,1,0,0\n", "expected a barcode, in_tissue, .* got 4 values"),
        (",".join(NAMES) + "\ns,1,0,0,x,5\n", "pxl_row_in_fullres: expected numbers"),
        (",".join(NAMES) + "\ns,1,0,0,,5\ns,1,0,1,,5\n", "pxl_row_in_fullres: expected numbers"),
        (",".join(NAMES) + "\ns,1,0\n", "the bin positions as CSV; it cannot be read"),
        ("", "missing"),
        ("\xff\xfe", "cannot be read"),
    ],
)
def test_text_that_is_no_table_of_bins_is_refused(slide, text, reason):
    path = as_text(slide, "tissue_positions.csv")
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SlideError, match=r"tissue_positions\.csv: .*" + reason):
        VisiumHDSlide.open(slide)


def test_positions_that_are_missing_name_what_is_read(slide):
    (slide / "outs" / SQUARE / "spatial" / "tissue_positions.parquet").unlink()
    with pytest.raises(SlideError, match=r"\*tissue_positions\.parquet or .*positions_list\.csv"):
        VisiumHDSlide.open(slide)

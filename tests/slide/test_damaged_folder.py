"""Damaged matrices, positions and scale factors are refused in one line."""

import json
import shutil

import h5py
import numpy as np
import pytest
from tiny_slide import TinySlide
from visium_folder import assert_one_line, matrix_file, read_all, square

from virchow_st.errors import SlideError
from virchow_st.slide.visium_hd import VisiumHDSlide


def edit(outs, name, change):
    """Replace a dataset of the filtered matrix by what ``change`` makes of it."""
    with h5py.File(matrix_file(outs), "r+") as file:
        value = change(file[f"matrix/{name}"][:])
        del file[f"matrix/{name}"]
        file[f"matrix/{name}"] = value
    return outs


def set_at(index, value):
    def change(values):
        values[index] = value
        return values

    return change


@pytest.mark.parametrize(
    ("form", "match"),
    [
        ("s_008um_{:05d}_{:05d}-1", "bins of 8 µm"),
        ("s_002um_{:05d}_{:05d}-2", "of one slide"),
        ("AAACAAGTATCTCCCA-1", "of Visium v1"),
        ("cellid_000000001-1", "segmented cell"),
        ("s_002um_{:05d}_x{:04d}-1", "expected barcodes such as"),
    ],
)
@pytest.mark.parametrize("variable", [False, True])
def test_other_barcodes_are_refused(tmp_path, form, match, variable):
    slide = TinySlide(rows=20, cols=20, barcode_format=form, variable_strings=variable)
    with pytest.raises(SlideError, match=match) as e:
        VisiumHDSlide.open(slide.write(tmp_path))
    assert_one_line(e)


DAMAGE = {
    "negative count": ("data", set_at(7, -1), "whole and not negative; got -1"),
    "fraction": ("data", lambda d: d + 0.5, "got fractions"),
    "not a number": ("data", lambda d: d.astype(float) * np.nan, "got fractions"),
    "text": ("data", lambda d: d.astype("S"), "values of type"),
    "feature out of range": ("indices", set_at(3, 30), "indices: expected 0 to 29; got 0 to 30"),
    "feature negative": ("indices", set_at(3, -4), "got -4 to 29"),
    "entries missing": ("indices", lambda i: i[:-5], "indices: expected"),
    "indptr falls": ("indptr", set_at(9, 0), "indptr: expected values rising"),
    "indptr short": ("indptr", lambda i: i[:-1], "indptr: expected"),
    "barcodes short": ("barcodes", lambda b: b[1:], "barcodes: expected"),
    "bin off the grid": ("barcodes", set_at(-1, b"s_002um_00150_00000-1"), "row 150, column 0"),
    "bin twice": ("barcodes", lambda b: np.append(b[:-1], b[:1]), "barcodes: expected every bin"),
    "gene id twice": ("features/id", lambda i: np.append(i[:-1], i[:1]), "every gene id once"),
    "no genes": ("features/feature_type", lambda t: np.full_like(t, b"CRISPR"), "found none"),
    "no shape": ("shape", lambda s: s[:0], "cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_matrix_is_refused(tiny, name):
    dataset, change, match = DAMAGE[name]
    with pytest.raises(SlideError, match=match) as e:
        read_all(edit(tiny, dataset, change))
    assert_one_line(e)
    assert str(matrix_file(tiny)) in str(e.value)


def test_entry_twice_is_refused(tiny):
    with h5py.File(matrix_file(tiny), "r+") as file:
        indptr, indices = file["matrix/indptr"][:], file["matrix/indices"][:]
        two = np.flatnonzero(np.diff(indptr) >= 2)[:2000]
        indices[indptr[two] + 1] = indices[indptr[two]]
        file["matrix/indices"][:] = indices
    with pytest.raises(SlideError, match="a gene once in a bin"):
        read_all(tiny)


def test_matrix_of_another_slide_is_refused(tmp_path):
    outs = TinySlide(rows=140, cols=140).write(tmp_path / "a")
    other = TinySlide(rows=150, cols=140).write(tmp_path / "b")
    shutil.copy(matrix_file(other), matrix_file(outs))
    with pytest.raises(SlideError, match="matrix and positions of the same slide"):
        read_all(outs)


FILES = ["*filtered_feature_bc_matrix.h5", "spatial/*.parquet", "spatial/*.json"]


@pytest.mark.parametrize("pattern", FILES)
def test_cut_and_missing_files_are_refused(tiny, pattern):
    path = next(square(tiny).glob(pattern))
    content = path.read_bytes()
    for tenth in range(10):
        path.write_bytes(content[: len(content) * tenth // 10])
        with pytest.raises(SlideError, match=path.name) as e:
            read_all(tiny)
        assert_one_line(e)
    path.unlink()
    with pytest.raises(SlideError, match="found none; copy it"):
        read_all(tiny)


@pytest.mark.parametrize("pattern", FILES)
def test_flipped_bytes_are_refused_or_harmless(tiny, pattern):
    path, rng = next(square(tiny).glob(pattern)), np.random.default_rng(0)
    content, refused = path.read_bytes(), []
    for _ in range(20):
        flipped = bytearray(content)
        for at in rng.integers(0, len(content), 3):
            flipped[at] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(flipped))
        try:
            read_all(tiny)
        except SlideError as e:
            refused.append(str(e))
    assert len(refused) > 3
    assert all("\n" not in line for line in refused)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.tissue.__imul__(False), "in_tissue is 0"),
        (lambda t: setattr(t, "position_dtype", "float64"), "array_row: expected integers"),
    ],
)
def test_positions_that_cannot_be(tmp_path, change, match):
    truth = TinySlide(rows=20, cols=20)
    change(truth)
    with pytest.raises(SlideError, match=match) as e:
        VisiumHDSlide.open(truth.write(tmp_path))
    assert_one_line(e)


def test_bent_and_repeated_positions_are_refused(tmp_path):
    truth = TinySlide(rows=20, cols=20)
    outs = truth.write(tmp_path)
    path = next(square(outs).glob("spatial/*.parquet"))
    bins = np.argwhere(np.ones((20, 20)))
    truth.write_positions(path, np.concatenate([bins, bins[:3]]))
    with pytest.raises(SlideError, match="every bin once; 3 are repeated"):
        VisiumHDSlide.open(outs)
    truth.write_positions(path, bins[:20])
    with pytest.raises(SlideError, match="lie on a line"):
        VisiumHDSlide.open(outs)
    straight = truth.homography

    class Bent:
        def to_px(self, col, row):
            x, y = straight.to_px(col, row)
            return x, y + 0.003 * (col - 10.0) ** 2

    truth.homography = Bent()
    truth.write_positions(path, bins)
    with pytest.raises(SlideError, match=r"within 0.1 px of a homography"):
        VisiumHDSlide.open(outs)


@pytest.mark.parametrize("values", ["[]", '{"tissue_hires_scalef": 0.1}', '{"bin_size_um": "2"}'])
def test_scale_factors_of_another_assay(tiny, values):
    next(square(tiny).glob("spatial/*.json")).write_text(values)
    with pytest.raises(SlideError, match="give the square_002um folder") as e:
        VisiumHDSlide.open(tiny)
    assert_one_line(e)


def test_extra_scale_factors_are_kept_as_numbers(tiny):
    path = next(square(tiny).glob("spatial/*.json"))
    path.write_text(json.dumps({"bin_size_um": 2, "microns_per_pixel": 0.3, "note": "x"}))
    slide = VisiumHDSlide.open(tiny)
    assert slide.scalefactors == {"bin_size_um": 2.0, "microns_per_pixel": 0.3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[2]", "expected an object; got a list"),
        ("{}", "bin_size_um is missing; give the square_002um folder"),
        ('{"bin_size_um": true}', "bin_size_um: expected a number; got True"),
        ('{"bin_size_um": "2"}', "bin_size_um: expected a number; got '2'"),
        ('{"bin_size_um": NaN}', "NaN is no number in JSON"),
        ('{"bin_size_um": 2, "tissue_hires_scalef": []}', "tissue_hires_scalef: expected a number"),
        ('{"bin_size_um": 2', "cannot be read as JSON"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_scale_factors_that_are_none_are_refused(tiny, content, message):
    path = next(square(tiny).glob("spatial/*.json"))
    path.write_text(content)
    with pytest.raises(SlideError) as e:
        VisiumHDSlide.open(tiny)
    assert str(e.value).startswith(f"{path}: ")
    assert message in str(e.value)
    assert_one_line(e)

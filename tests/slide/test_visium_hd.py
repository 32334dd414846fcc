import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from scipy import sparse
from tiny_slide import TinySlide, draw_markers, write_image

from virchow_st.errors import SlideError
from virchow_st.slide.image import SlideImage
from virchow_st.slide.patches import lay_patches
from virchow_st.slide.visium_hd import VisiumHDSlide

SHARED = Path(__file__).resolve().parents[3] / "shared"
IMAGES = {"C2": "tissue_image.btf", "C5": "tissue_image.tif"}
KINDS = ["rotation", "mirror", "quarter turn", "perspective"]


def shared(*parts):
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the shared folder is not at {SHARED}")
    return path


def square(outs):
    return next(outs.glob("*binned_outputs/square_002um"))


def matrix_file(outs, which="filtered"):
    return next(square(outs).glob(f"*{which}_feature_bc_matrix.h5"))


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


def dense(counts, patch, n_genes):
    """One patch as (G, 128, 128)."""
    gene, position, count = counts[patch]
    assert not (np.diff(gene.astype(np.int64) << 14 | position) <= 0).any()  # none comes twice
    out = np.zeros((n_genes, 128 * 128), np.int32)
    out[gene, position] = count
    return out.reshape(n_genes, 128, 128)


def assert_one_line(error):
    assert "\n" not in str(error.value)


def assert_equal_counts(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(actual.gene_totals, expected.gene_totals)


def open_and_read(outs, matrix="filtered"):
    slide = VisiumHDSlide.open(outs, matrix)
    return slide.read_counts(lay_patches(slide.tissue_mask, 0.1))


@pytest.fixture
def tiny(tmp_path):
    return TinySlide().write(tmp_path / "outs")


VARIANTS = {
    "today": {},
    "older": {"variable_strings": True, "index_dtype": np.uint32, "data_dtype": np.uint32},
    "narrow": {"data_dtype": np.float32, "index_dtype": np.int32, "position_dtype": "int64"},
    "prefixed": {"prefix": "Sample_7_", "position_dtype": "uint16"},
}


@pytest.mark.parametrize(
    ("kind", "which", "variant"),
    [(kind, which, "today") for kind in KINDS for which in ("filtered", "raw")]
    + [("mirror", "filtered", variant) for variant in ("older", "narrow", "prefixed")],
)
def test_fabricated_slide(tmp_path, kind, which, variant):
    truth = TinySlide(kind=kind, **VARIANTS[variant])
    slide = VisiumHDSlide.open(truth.write(tmp_path), which)
    assert slide.grid_shape == truth.tissue.shape
    np.testing.assert_array_equal(slide.tissue_mask, truth.tissue)
    np.testing.assert_allclose(slide.homography.matrix, truth.homography.matrix, atol=1e-8)
    assert slide.homography.residual_px < 1e-8
    assert slide.mpp == pytest.approx(2 / 6, rel=0.01)
    assert slide.genes.ids == tuple(np.array(truth.ids)[truth.is_gene])
    assert slide.genes.symbols == tuple(np.array(truth.symbols)[truth.is_gene])
    counts = slide.read_counts(lay_patches(slide.tissue_mask, 0.5))
    expected = (truth.counts * truth.tissue)[truth.is_gene]
    assert len(counts) == 1
    np.testing.assert_array_equal(dense(counts, 0, len(slide.genes)), expected[:, :128, :128])
    np.testing.assert_array_equal(counts.gene_totals, expected.sum(axis=(1, 2)))
    assert counts.total_umi == expected.sum()
    gene, position, count = counts[0]
    assert count.min() >= 1
    assert count.max() == 70_000
    assert (gene.dtype, position.dtype, count.dtype) == (np.uint16, np.uint16, np.uint32)


def test_blocks_do_not_show(tiny, monkeypatch):
    whole = open_and_read(tiny)
    monkeypatch.setattr("virchow_st.slide.matrix._ENTRIES_PER_BLOCK", 997)
    monkeypatch.setattr("virchow_st.slide.matrix._BARCODES_PER_BLOCK", 1013)
    blocks = open_and_read(tiny)
    assert_equal_counts(whole, blocks)


def test_any_level_of_folder_opens(tiny):
    folders = [tiny, tiny / "binned_outputs", square(tiny)]
    slides = [VisiumHDSlide.open(folder) for folder in folders]
    assert {slide.folder for slide in slides} == {square(tiny)}
    prints = {slide.fingerprint() for slide in slides}
    assert len(prints) == 1
    with h5py.File(matrix_file(tiny), "r+") as file:
        file["matrix/data"][0] += 1
    assert VisiumHDSlide.open(tiny).fingerprint() not in prints


@pytest.mark.parametrize("name", ["C2", "C5"])
def test_shared_slide_equals_dense_reconstruction(name):
    slide = VisiumHDSlide.open(shared("slides", name))
    table = lay_patches(slide.tissue_mask, 0.5)
    counts = slide.read_counts(table)
    with h5py.File(slide.matrix_path) as file:
        m = file["matrix"]
        parts = (m["data"][:], m["indices"][:].astype(np.int32), m["indptr"][:].astype(np.int32))
        columns = sparse.csc_array(parts, shape=tuple(m["shape"][:]))
        bins = [b.decode().split("_")[2:] for b in m["barcodes"][:]]
    row, col = np.array([(int(r), int(c[:5])) for r, c in bins]).T
    column_of_bin = np.full(slide.grid_shape, -1)
    column_of_bin[row, col] = np.arange(len(row))
    column_of_bin[~slide.tissue_mask] = -1
    umi = 0
    for p, (row0, col0) in enumerate(zip(table.row0, table.col0, strict=True)):
        of_patch = column_of_bin[row0 : row0 + 128, col0 : col0 + 128].ravel()
        expected = np.zeros((len(slide.genes), 128 * 128), np.int32)
        expected[:, of_patch >= 0] = columns[:, of_patch[of_patch >= 0]].toarray()
        actual = dense(counts, p, len(slide.genes)).reshape(expected.shape)
        assert np.array_equal(actual, expected)
        umi += expected.sum()
    assert sum(int(count.sum()) for _, _, count in counts) == umi
    in_tissue = columns[:, column_of_bin[column_of_bin >= 0]]
    np.testing.assert_array_equal(counts.gene_totals, in_tissue.sum(axis=1))

    raw = VisiumHDSlide.open(slide.folder, "raw").read_counts(table)
    assert_equal_counts(raw, counts)


@pytest.mark.parametrize("name", ["C2", "C5"])
def test_shared_images_fit_only_their_slide(name):
    slide = VisiumHDSlide.open(shared("slides", name))
    with SlideImage.open(shared("slides", name, IMAGES[name])) as image:
        slide.check_image(image)
    other = {"C2": "C5", "C5": "C2"}[name]
    with SlideImage.open(shared("slides", other, IMAGES[other])) as image:
        with pytest.raises(SlideError, match=r"expected about .*tissue_hires_image.png") as e:
            slide.check_image(image)
        assert_one_line(e)
    with pytest.raises(SlideError, match="not cytassist_image"):
        SlideImage.open(slide.folder / "spatial" / "cytassist_image.tiff")
    with SlideImage.open(slide.folder / "spatial" / "tissue_lowres_image.png") as image:  # noqa: SIM117
        with pytest.raises(SlideError, match="as small as a CytAssist"):
            slide.check_image(image)


def test_mouse_brain_fragment_opens():
    slide = VisiumHDSlide.open(shared("fixtures", "mouse_brain_hd"))
    assert slide.grid_shape == (2704, 2516)
    assert slide.tissue_mask.sum() == 10
    expected = [[-7.30020288, 0.110259956, 21030.7433], [0.112578679, 7.30121053, 44.1895275]]
    np.testing.assert_allclose(slide.homography.matrix[:2], expected, rtol=1e-6)
    assert slide.homography.residual_px < 1e-9
    assert slide.mpp == pytest.approx(slide.scalefactors["microns_per_pixel"], rel=1e-3)
    assert slide.genes.symbols[0] == "Xkr4"
    counts = slide.read_counts(lay_patches(slide.tissue_mask, 0.0))
    assert counts.total_umi == 0


@pytest.mark.parametrize("size", ["008", "016"])
def test_coarse_bins_are_refused_and_the_right_folder_named(size):
    folder = shared("fixtures", "seurat_hd", "binned_outputs", f"square_{size}um")
    with pytest.raises(SlideError, match=rf"got {int(size)} µm; give .*square_002um") as e:
        VisiumHDSlide.open(folder)
    assert_one_line(e)
    with pytest.raises(SlideError, match="found only square_008um, square_016um"):
        VisiumHDSlide.open(folder.parent)


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
        open_and_read(edit(tiny, dataset, change))
    assert_one_line(e)
    assert str(matrix_file(tiny)) in str(e.value)


def test_entry_twice_is_refused(tiny):
    with h5py.File(matrix_file(tiny), "r+") as file:
        indptr, indices = file["matrix/indptr"][:], file["matrix/indices"][:]
        two = np.flatnonzero(np.diff(indptr) >= 2)[:2000]
        indices[indptr[two] + 1] = indices[indptr[two]]
        file["matrix/indices"][:] = indices
    with pytest.raises(SlideError, match="a gene once in a bin"):
        open_and_read(tiny)


def test_matrix_of_another_slide_is_refused(tmp_path):
    outs = TinySlide(rows=140, cols=140).write(tmp_path / "a")
    other = TinySlide(rows=150, cols=140).write(tmp_path / "b")
    shutil.copy(matrix_file(other), matrix_file(outs))
    with pytest.raises(SlideError, match="matrix and positions of the same slide"):
        open_and_read(outs)


FILES = ["*filtered_feature_bc_matrix.h5", "spatial/*.parquet", "spatial/*.json"]


@pytest.mark.parametrize("pattern", FILES)
def test_cut_and_missing_files_are_refused(tiny, pattern):
    path = next(square(tiny).glob(pattern))
    content = path.read_bytes()
    for tenth in range(10):
        path.write_bytes(content[: len(content) * tenth // 10])
        with pytest.raises(SlideError, match=path.name) as e:
            open_and_read(tiny)
        assert_one_line(e)
    path.unlink()
    with pytest.raises(SlideError, match="found none; copy it"):
        open_and_read(tiny)


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
            open_and_read(tiny)
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


def test_ambiguous_and_wrong_folders(tiny, tmp_path):
    with pytest.raises(SlideError, match="expected a folder"):
        VisiumHDSlide.open(matrix_file(tiny))
    with pytest.raises(SlideError, match="no binned output"):
        VisiumHDSlide.open(square(tiny) / "spatial")
    shutil.copytree(square(tiny), tiny / "binned_outputs" / "old_square_002um")
    with pytest.raises(SlideError, match="expected one square_002um; found"):
        VisiumHDSlide.open(tiny)


def test_check_image(tmp_path):
    truth = TinySlide(scalefactors={"bin_size_um": 2.0, "tissue_hires_scalef": 0.25})
    outs = truth.write(tmp_path / "outs")
    drawn = draw_markers(truth.homography, truth.image_size, [(70, 70)])
    slide = VisiumHDSlide.open(outs)

    def check(pixels):
        path = tmp_path / "image.tif"
        tifffile.imwrite(path, pixels, photometric="rgb")
        with SlideImage.open(path) as image:
            slide.check_image(image)

    check(drawn)  # without the hires image: do the bins lie on it?
    with pytest.raises(SlideError, match="tissue bins to lie on the image"):
        check(drawn[:200, :200])
    write_image(square(outs) / "spatial" / "tissue_hires_image.tif", drawn[::4, ::4], "png")
    slide = VisiumHDSlide.open(outs)
    check(drawn)
    check(drawn[:-5])  # within 1 %
    with pytest.raises(SlideError, match="rotated by 90°"):
        check(np.rot90(drawn))
    with pytest.raises(SlideError, match=r"size of .*tissue_hires_image\.png"):
        check(drawn[:, :-20])


def test_tissue_beside_an_image_of_the_right_size_is_refused(tmp_path):
    """It was extracted, as patches without a pixel of the slide."""
    truth = TinySlide(scalefactors={"bin_size_um": 2.0, "tissue_hires_scalef": 0.25})
    image_size = truth.image_size
    beside = np.array([[1.0, 0, 5000], [0, 1, 5000], [0, 0, 1]])
    truth.homography = type(truth.homography)(beside @ truth.homography.matrix)
    outs = truth.write(tmp_path / "outs")
    pixels = draw_markers(truth.homography, image_size, [])
    write_image(square(outs) / "spatial" / "tissue_hires_image.tif", pixels[::4, ::4], "png")
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, pixels, photometric="rgb")
    with SlideImage.open(path) as image, pytest.raises(SlideError, match="on the image; 0% do"):
        VisiumHDSlide.open(outs).check_image(image)


def test_coarse_scan_is_refused(tmp_path):
    truth = TinySlide(rows=140, cols=140)
    matrix = truth.homography.matrix.copy()
    matrix[:2] /= 4  # 1.3 µm/px
    truth.homography = type(truth.homography)(matrix)
    outs = truth.write(tmp_path / "outs")
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, np.zeros((300, 300, 3), np.uint8), photometric="rgb")
    with SlideImage.open(path) as image, pytest.raises(SlideError, match="or finer") as e:
        VisiumHDSlide.open(outs).check_image(image)
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

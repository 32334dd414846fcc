"""Visium HD folders: bins, genes, homography and counts as they were written."""

import shutil

import h5py
import numpy as np
import pytest
from scipy import sparse
from tiny_slide import TinySlide
from visium_folder import (
    assert_equal_counts,
    assert_one_line,
    matrix_file,
    read_all,
    shared,
    square,
)

from virchow_st.errors import SlideError
from virchow_st.slide.patches import lay_patches
from virchow_st.slide.visium_hd import VisiumHDSlide

KINDS = ["rotation", "mirror", "quarter turn", "perspective"]


def dense(counts, patch, n_genes):
    """One patch as (G, 128, 128)."""
    gene, position, count = counts[patch]
    assert not (np.diff(gene.astype(np.int64) << 14 | position) <= 0).any()  # none comes twice
    out = np.zeros((n_genes, 128 * 128), np.int32)
    out[gene, position] = count
    return out.reshape(n_genes, 128, 128)


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
    whole = read_all(tiny)[1]
    monkeypatch.setattr("virchow_st.slide.matrix._ENTRIES_PER_BLOCK", 997)
    monkeypatch.setattr("virchow_st.slide.matrix._BARCODES_PER_BLOCK", 1013)
    blocks = read_all(tiny)[1]
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


def test_ambiguous_and_wrong_folders(tiny, tmp_path):
    with pytest.raises(SlideError, match="expected a folder"):
        VisiumHDSlide.open(matrix_file(tiny))
    with pytest.raises(SlideError, match="no binned output"):
        VisiumHDSlide.open(square(tiny) / "spatial")
    shutil.copytree(square(tiny), tiny / "binned_outputs" / "old_square_002um")
    with pytest.raises(SlideError, match="expected one square_002um; found"):
        VisiumHDSlide.open(tiny)

"""Counts of a slide against an independent reconstruction, however it lies."""

from __future__ import annotations

import shutil
import sys
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse
from slide_reference import Reference
from tiny_slide import TinySlide
from visium_folder import POSITIONS, assert_equal_counts, matrix_file, read_all

from virchow_st.errors import SlideError
from virchow_st.slide.geometry import Homography
from virchow_st.slide.patch_counts import PatchCounts
from virchow_st.slide.patches import lay_patches

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from full_slide import SMALL, write_slide


def totals(counts: PatchCounts) -> tuple[int, int]:
    """UMIs in the patches, and in all tissue."""
    return sum(int(count.sum()) for _, _, count in counts), counts.total_umi


def as_csr(patch: tuple[np.ndarray, ...], n_genes: int) -> sparse.csr_array:
    gene, position, count = patch
    order = gene.astype(np.int64) * 128 * 128 + position
    assert (np.diff(order) > 0).all()  # sorted, none twice
    assert (count > 0).all()
    return sparse.csr_array((count.astype(np.int64), (gene, position)), (n_genes, 128 * 128))


POSES = list(product([False, True], range(4), [False, True]))


@pytest.fixture(scope="module")
def reference(simulated: Path) -> Reference:
    return Reference(simulated / "P1" / "outs", "filtered")


@pytest.mark.parametrize(("mirrored", "turns", "tilted"), POSES)
def test_counts_stay_on_their_bins_in_every_pose(
    simulated: Path, reference: Reference, tmp_path: Path, mirrored: bool, turns: int, tilted: bool
) -> None:
    shutil.copytree(simulated / "P1" / "outs", tmp_path / "outs", copy_function=shutil.copy)
    table = pq.read_table(tmp_path / "outs" / POSITIONS)
    angle = np.radians(90 * turns + 1.3)
    cos, sin = np.cos(angle), np.sin(angle)
    flip = np.diag([-1.0 if mirrored else 1.0, 1.0, 1.0])
    tilt = [1.3e-5, -7.6e-6, 1.0] if tilted else [0.0, 0.0, 1.0]
    turn = np.array([[4.1 * cos, -4.1 * sin, 3000.0], [4.1 * sin, 4.1 * cos, 3000.0], tilt])
    homography = Homography(turn @ flip)
    row, col = (table[name].to_numpy() for name in ("array_row", "array_col"))
    for name, pixels in zip(
        ("pxl_col_in_fullres", "pxl_row_in_fullres"), homography.to_px(col, row), strict=True
    ):
        table = table.set_column(table.column_names.index(name), name, pa.array(pixels))
    pq.write_table(table, tmp_path / "outs" / POSITIONS)

    for which in ("filtered", "raw"):
        slide, counts = read_all(tmp_path / "outs", which)
        np.testing.assert_allclose(slide.homography.matrix, homography.matrix, rtol=1e-6, atol=1e-9)
        assert slide.homography.residual_px < 1e-6
        np.testing.assert_array_equal(slide.tissue_mask, reference.tissue)
        patches = lay_patches(slide.tissue_mask, 0.0)
        assert len(counts) == 9
        for patch, row0, col0 in zip(counts, patches.row0, patches.col0, strict=True):
            actual = as_csr(patch, len(reference.ids))
            assert abs(actual - reference.patch(row0, col0)).nnz == 0
        umi = int(reference.counts.sum())
        assert totals(counts) == (umi, umi)  # 384 bins are whole patches: none is left over
        of_genes = np.asarray(reference.counts.sum(axis=1)).ravel()
        np.testing.assert_array_equal(counts.gene_totals, of_genes)


def test_benchmark_slide_equals_scipy(tmp_path: Path) -> None:
    outs = write_slide(tmp_path, SMALL)
    slide, counts = read_all(outs)
    patches = lay_patches(slide.tissue_mask, 0.0)
    with h5py.File(matrix_file(outs)) as file:
        m = file["matrix"]
        parts = (m["data"][:], m["indices"][:], m["indptr"][:])
        columns = sparse.csc_array(parts, shape=tuple(m["shape"][:]))
        row, col = np.array([b.split(b"_")[2:] for b in m["barcodes"][:]]).T
    row, col = row.astype(int), np.char.replace(col, b"-1", b"").astype(int)
    assert columns.nnz == pytest.approx(SMALL.nnz, rel=0.05)
    n_in_patches = 0
    for patch, row0, col0 in zip(counts, patches.row0, patches.col0, strict=True):
        inside = np.flatnonzero((row // 128 == row0 // 128) & (col // 128 == col0 // 128))
        expected = columns[:, inside].tocoo()
        position = (row[inside] - row0) * 128 + col[inside] - col0
        at = (expected.coords[0], position[expected.coords[1]])
        expected = sparse.csr_array((expected.data, at), (SMALL.n_genes, 128 * 128))
        assert abs(as_csr(patch, SMALL.n_genes) - expected).nnz == 0
        n_in_patches += int(expected.sum())
    assert totals(counts) == (n_in_patches, columns.sum())
    np.testing.assert_array_equal(counts.gene_totals, columns.sum(axis=1))
    assert max(count.max() for _, _, count in counts) > 3  # a count that its entry cannot hold

    raw_slide, raw = read_all(outs, "raw")
    with h5py.File(matrix_file(outs, "raw")) as file:
        assert file["matrix/barcodes"][:2].tolist() == [
            b"s_002um_00000_00000-1",
            b"s_002um_00000_00001-1",
        ]
    np.testing.assert_array_equal(raw_slide.tissue_mask, slide.tissue_mask)
    assert_equal_counts(raw, counts)


def test_counts_beyond_any_bin_are_refused(
    packed: tuple[Path, PatchCounts], tmp_path: Path
) -> None:
    outs = shutil.copytree(packed[0], tmp_path / "outs")
    with h5py.File(matrix_file(outs), "r+") as file:
        file["matrix/data"][3] = 1 << 24  # 1, its bytes the wrong way round
    with pytest.raises(SlideError, match="expected UMI counts.*got 1 to 16777216") as e:
        read_all(outs)
    assert "\n" not in str(e.value)


def test_filtered_matrix_of_another_slide_is_refused(tmp_path: Path) -> None:
    """Of the same size, so that no bin is off the grid."""
    outs = TinySlide(rows=130, cols=130, n_genes=6, seed=1).write(tmp_path / "a")
    other = TinySlide(rows=130, cols=130, n_genes=6, seed=2).write(tmp_path / "b")
    shutil.copy(matrix_file(other), matrix_file(outs))
    with pytest.raises(SlideError, match="are missing, and .* outside tissue are present") as e:
        read_all(outs)
    assert "\n" not in str(e.value)
    assert "same slide" in str(e.value)
    shutil.copy(matrix_file(other, "raw"), matrix_file(outs, "raw"))
    read_all(outs, "raw")  # has every bin, and so lies on any tissue


@pytest.mark.parametrize("removed", [True, False])
def test_tissue_edited_one_way_is_taken(tmp_path: Path, removed: bool) -> None:
    truth = TinySlide(rows=130, cols=130, n_genes=6)
    outs = truth.write(tmp_path)
    truth.tissue[10:20] = not removed
    bins = np.argwhere(np.ones_like(truth.tissue))
    truth.write_positions(outs / POSITIONS, bins)
    slide, counts = read_all(outs)
    assert slide.tissue_mask[10:20].any() != removed
    umi = (truth.counts * truth.tissue)[truth.is_gene].sum()
    if removed:
        assert counts.total_umi == umi
    else:
        assert counts.total_umi < umi  # bins that the filtered matrix has not
        assert read_all(outs, "raw")[1].total_umi == umi

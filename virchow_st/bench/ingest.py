"""``vst bench ingest``: from Space Ranger's files to gene-major counts of patches."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
from scipy import sparse

from virchow_st.bench.limits import disk_rates
from virchow_st.bench.samples import simulate_slide
from virchow_st.bench.tables import Cell, Table, interleaved
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.slide.patch_counts import PatchCounts
from virchow_st.slide.patches import PatchTable, lay_patches
from virchow_st.slide.visium_hd import VisiumHDSlide
from virchow_st.types import PATCH_BINS, PATCH_POSITIONS, Array, BoolArray, Int64Array

MIN_TISSUE = 0.5
_BLOCK = 1 << 20  # entries read at once

# (P+1,) start of each patch's entries, then gene, position and count of each entry.
PlainCounts = tuple[Int64Array, Array, Array, Array]


def measure(
    folder: Path,
    progress: Progress = SILENT,
    *,
    bins: int = 640,
    genes: int = 1000,
    rounds: int = 3,
) -> list[Table]:
    """Measure on a simulated slide; `benchmarks/bench_ingest.py` uses a slide of full size.

    Args:
        folder: Scratch folder.
        progress: Receives notes, warnings and step counts.
        bins: Side of the slide in 2 µm bins.
        genes: Number of genes.
        rounds: Timed passes; the best time is used.

    Raises:
        AssertionError: The two implementations read different counts.
    """
    progress.note(f"ingest: drawing a slide of {bins}×{bins} bins")
    outs = simulate_slide(folder, bins, genes).outs
    slide = VisiumHDSlide.open(outs)
    matrix, positions = slide.matrix_path, slide.files.positions
    patches = lay_patches(slide.tissue_mask, MIN_TISSUE)
    progress.note(f"ingest: reading {slide.matrix.nnz:,} non-zeros, {len(patches)} patches")
    check_equal(read_counts(outs), read_plainly(matrix, positions, patches))

    ours, plain, floor = interleaved(
        lambda: read_counts(outs),
        lambda: read_plainly(matrix, positions, patches),
        lambda: stream(matrix, positions),
        rounds=rounds,
    )
    n_bytes = matrix.stat().st_size + positions.stat().st_size
    rows: list[list[Cell]] = [
        [name, seconds, slide.matrix.nnz / seconds / 1e6, plain / seconds, floor / seconds]
        for name, seconds in (
            ("plain: h5py, scipy, a sort", plain),
            ("ours", ours),
            ("streaming, nothing kept", floor),
        )
    ]
    read = disk_rates(folder).read
    disk = f"{n_bytes / read:.3f} s from the disk, cold" if read else "a disk that lies in memory"
    return [
        Table(
            "Ingest: a slide's files to the counts of its patches, gene by gene",
            ["", "s", "M entries/s", "ratio to plain", "share of streaming"],
            rows,
            [
                f"simulated slide, {bins}×{bins} bins, {genes:,} genes, {slide.matrix.nnz:,} "
                f"non-zeros, {len(patches)} patches, equal on both sides. Ours is "
                f"VisiumHDSlide.open and read_counts; it also fits the homography and checks every "
                f"number. The files, {n_bytes / 1e6:.1f} MB, lie in the page cache ({disk})."
            ],
        )
    ]


def read_counts(outs: Path) -> PatchCounts:
    """Read the counts with this package, starting from the folder."""
    slide = VisiumHDSlide.open(outs)
    return slide.read_counts(lay_patches(slide.tissue_mask, MIN_TISSUE))


def read_plainly(matrix_path: Path, positions_path: Path, patches: PatchTable) -> PlainCounts:
    """Read the counts plainly: whole matrix in memory, tissue by a mask, patches by one sort.

    Args:
        matrix_path: Feature-barcode matrix, CSC in HDF5; every feature is a gene.
        positions_path: ``tissue_positions.parquet``.
        patches: Positions of the patches, which are given and not computed.
    """
    tissue = _tissue(positions_path)
    with h5py.File(matrix_path, "r") as file:
        m = file["matrix"]
        shape = tuple(m["shape"][:])
        counts = sparse.csc_matrix((m["data"][:], m["indices"][:], m["indptr"][:]), shape)
        barcodes = m["barcodes"][:]  # s_002um_RRRRR_CCCCC-1
    letters = barcodes.view("S1").reshape(len(barcodes), -1)
    row, col = (
        np.ascontiguousarray(letters[:, at : at + 5]).view("S5").ravel().astype(np.int64)
        for at in (8, 14)
    )
    patch_of_square = np.full(np.array(tissue.shape) // PATCH_BINS + 1, -1)
    patch_of_square[patches.row0 // PATCH_BINS, patches.col0 // PATCH_BINS] = np.arange(
        len(patches)
    )
    patch = np.where(tissue[row, col], patch_of_square[row // PATCH_BINS, col // PATCH_BINS], -1)
    position = row % PATCH_BINS * PATCH_BINS + col % PATCH_BINS

    kept = np.flatnonzero(patch >= 0)
    entries = counts[:, kept].tocoo()
    gene, column = entries.row.astype(np.int64), kept[entries.col]
    key = (patch[column] * shape[0] + gene) * PATCH_POSITIONS + position[column]
    order = np.argsort(key)
    starts = np.searchsorted(patch[column][order], np.arange(len(patches) + 1))
    return starts, gene[order], position[column][order], entries.data[order]


def _tissue(positions_path: Path) -> BoolArray:
    """Tissue mask (rows, cols), bool, from ``tissue_positions.parquet``."""
    names = ["in_tissue", "array_row", "array_col"]
    table = pq.read_table(positions_path, columns=names)
    in_tissue, row, col = (table.column(name).to_numpy() for name in names)
    tissue = np.zeros((int(row.max()) + 1, int(col.max()) + 1), bool)
    tissue[row, col] = in_tissue == 1
    return tissue


def check_equal(ours: PatchCounts, plain: PlainCounts) -> None:
    """Raise `AssertionError` unless both have the same counts in the same order."""
    starts, *columns = plain
    np.testing.assert_array_equal(ours.indptr, starts)
    for p, patch in enumerate(ours):
        for got, want in zip(patch, columns, strict=True):
            np.testing.assert_array_equal(got, want[starts[p] : starts[p + 1]], f"patch {p}")


def stream(matrix_path: Path, positions_path: Path) -> None:
    """Read and decompress the datasets that any reader needs, block by block, and discard them."""
    with h5py.File(matrix_path, "r") as file:
        for name in ("data", "indices", "indptr", "barcodes"):
            values = file["matrix"][name]
            for start in range(0, len(values), _BLOCK):
                values[start : start + _BLOCK]
    pq.read_table(positions_path, columns=["in_tissue", "array_row", "array_col"])

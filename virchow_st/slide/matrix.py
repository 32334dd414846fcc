"""Reads a feature-barcode matrix in HDF5: its genes, its columns' bins, and its entries in blocks.

The matrix is stored as CSC under ``/matrix``, features by barcodes. Integer widths, string types
and compression differ between versions of Space Ranger; the reader accepts all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from virchow_st.errors import SlideError
from virchow_st.kernels.sparse import parse_bins
from virchow_st.names import is_plain
from virchow_st.runtime.prefetch import ahead
from virchow_st.slide.hdf5_chunks import Hdf5Column
from virchow_st.slide.space_ranger import reading
from virchow_st.types import BIN_UM, Array, Int64Array

_WHAT = "a feature-barcode matrix in HDF5"
_ENTRIES_PER_BLOCK = 1 << 20
_BARCODES_PER_BLOCK = 1 << 19
_COUNTS_END = 1 << 24  # larger values are not UMI counts, but numbers in the wrong byte order

# s_002um_RRRRR_CCCCC-1: zero bytes stand for the digits of row and column.
_BARCODE = np.frombuffer(f"s_{BIN_UM:03d}um_\0\0\0\0\0_\0\0\0\0\0-1".encode(), np.uint8)


@dataclass(frozen=True)
class GeneTable:
    """The genes of a slide, in the order of the matrix.

    Attributes:
        ids: gene ids, each occurring once.
        symbols: gene symbols in the same order; some occur more than once.
    """

    ids: tuple[str, ...]
    symbols: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class CountMatrix:
    """A matrix file that has been opened and checked; the counts stay on disk.

    Attributes:
        path: the HDF5 file.
        genes: the G features of type Gene Expression.
        gene_of_feature: (F,) int32 index into ``genes``, -1 for features of other types.
        n_columns: number of barcodes C.
        nnz: number of stored entries.
    """

    path: Path
    genes: GeneTable
    gene_of_feature: Array
    n_columns: int
    nnz: int

    @classmethod
    def open(cls, path: Path) -> CountMatrix:
        """Check the file's parts against each other and read the genes.

        Raises:
            SlideError: the file is damaged, its parts disagree, it holds no genes, or its barcodes
                are those of another assay.
        """
        with reading(path, _WHAT), h5py.File(path, "r") as file:
            matrix = file["matrix"]
            n_features, n_columns = (int(n) for n in matrix["shape"][:])
            nnz = matrix["data"].shape[0]
            lengths = {
                "indices": (matrix["indices"].shape[0], nnz),
                "indptr": (matrix["indptr"].shape[0], n_columns + 1),
                "barcodes": (matrix["barcodes"].shape[0], n_columns),
                "features/id": (matrix["features/id"].shape[0], n_features),
                "features/name": (matrix["features/name"].shape[0], n_features),
                "features/feature_type": (matrix["features/feature_type"].shape[0], n_features),
            }
            for name, (actual, expected) in lengths.items():
                if actual != expected:
                    raise _disagree(path, f"{name}: expected {expected} values; got {actual}")
            names = ("id", "name", "feature_type")
            ids, symbols, kinds = (
                _text(Hdf5Column(matrix[f"features/{name}"])[:]) for name in names
            )
            head = Hdf5Column(matrix["barcodes"])[:1000]
        if (odd := next((n for n in (*ids, *symbols) if not is_plain(n)), None)) is not None:
            raise SlideError(
                f"{path}: features: expected ids and names of genes without control characters; "
                f"got {odd!a:.60}; name them otherwise, then run this again"
            )
        _parse_barcodes(path, head)  # refuses another assay before the whole file is read

        is_gene = np.array([kind == "Gene Expression" for kind in kinds], bool)
        gene_of_feature = np.where(is_gene, np.cumsum(is_gene) - 1, -1).astype(np.int32)
        genes = GeneTable(
            ids=tuple(i for i, keep in zip(ids, is_gene, strict=True) if keep),
            symbols=tuple(s for s, keep in zip(symbols, is_gene, strict=True) if keep),
        )
        if not len(genes):
            raise SlideError(
                f"{path}: expected features of type Gene Expression; found none; "
                "give a Visium HD gene expression run"
            )
        if len(set(genes.ids)) != len(genes):
            raise _disagree(path, "features/id: expected every gene id once; some are repeated")
        return cls(path, genes, gene_of_feature, n_columns, nnz)

    def read_indptr(self) -> Int64Array:
        """(C+1,) int64: index of each column's first entry, and the number of entries.

        Raises:
            SlideError: the values do not rise from 0 to the number of entries.
        """
        with reading(self.path, _WHAT), h5py.File(self.path, "r") as file:
            indptr = Hdf5Column(file["matrix/indptr"])[:].astype(np.int64, copy=False)
        if indptr[0] != 0 or indptr[-1] != self.nnz or (indptr[1:] < indptr[:-1]).any():
            raise _disagree(self.path, f"indptr: expected values rising from 0 to {self.nnz}")
        return indptr

    def read_bins(self) -> Iterator[tuple[int, Array, Array]]:
        """Read the bins of the columns in blocks.

        Yields:
            The index of the block's first column, and array_row and array_col, (n,) int32 each.

        Raises:
            SlideError: a barcode is not that of a 2 µm bin.
        """
        with reading(self.path, _WHAT), h5py.File(self.path, "r") as file:
            barcodes = Hdf5Column(file["matrix/barcodes"])
            for start in range(0, self.n_columns, _BARCODES_PER_BLOCK):
                block = barcodes[start : start + _BARCODES_PER_BLOCK]
                yield start, *_parse_barcodes(self.path, block)

    def read_entries(self) -> Iterator[tuple[int, Array, Array]]:
        """Read the entries in blocks; a thread reads and decompresses the next block meanwhile.

        Yields:
            The index of the block's first entry, its features (n,) int64 and counts (n,) uint32.

        Raises:
            SlideError: a feature is out of range, or a count is not an integer from 0 to 2²⁴ - 1.
        """
        n_features = len(self.gene_of_feature)
        with (
            reading(self.path, _WHAT),
            h5py.File(self.path, "r") as file,
            ThreadPoolExecutor(1) as reader,
        ):
            parts = [Hdf5Column(file[f"matrix/{name}"]) for name in ("indices", "data")]

            def read(start: int) -> list[Array]:
                return [part[start : start + _ENTRIES_PER_BLOCK] for part in parts]

            starts = range(0, self.nnz, _ENTRIES_PER_BLOCK)
            for start, (features, counts) in ahead(reader, starts, read):
                if features.min() < 0 or features.max() >= n_features:
                    raise _disagree(
                        self.path,
                        f"indices: expected 0 to {n_features - 1}; "
                        f"got {features.min()} to {features.max()}",
                    )
                _check_counts(self.path, counts)
                yield (
                    start,
                    features.astype(np.int64, copy=False),
                    counts.astype(np.uint32, copy=False),
                )


def _check_counts(path: Path, counts: Array) -> None:
    if counts.dtype.kind not in "iuf":
        actual = f"values of type {counts.dtype}"
    elif counts.dtype.kind == "f" and not (np.isfinite(counts) & (counts % 1 == 0)).all():
        actual = "fractions"
    elif counts.min() < 0 or counts.max() >= _COUNTS_END:
        actual = f"{counts.min()} to {counts.max()}"
    else:
        return
    raise SlideError(
        f"{path}: data: expected UMI counts, whole and not negative; got {actual}; "
        "give the matrix as Space Ranger wrote it, not a normalised one"
    )


def _parse_barcodes(path: Path, barcodes: Array) -> tuple[Array, Array]:
    """array_row and array_col, (n,) int32 each, from strings of fixed or variable length."""
    if len(barcodes) == 0:
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    if barcodes.dtype.kind != "S":
        barcodes = np.array([b if isinstance(b, bytes) else str(b).encode() for b in barcodes])
    padding = max(0, len(_BARCODE) - barcodes.dtype.itemsize)
    letters = np.ascontiguousarray(barcodes).view(np.uint8).reshape(len(barcodes), -1)
    row, col = np.empty((2, len(barcodes)), np.int32)
    misfit = parse_bins(np.pad(letters, ((0, 0), (0, padding))), _BARCODE, row, col)
    if misfit >= 0:
        raise _other_barcode(path, barcodes[misfit].decode("ascii", "replace"))
    return row, col


def _other_barcode(path: Path, barcode: str) -> SlideError:
    expected = f"{path}: expected barcodes such as s_{BIN_UM:03d}um_00012_00345-1; got {barcode!r}"
    if size := re.match(r"s_0*(\d+)um_", barcode):
        if int(size[1]) == BIN_UM:
            return SlideError(f"{expected}; give the matrix of one slide as Space Ranger wrote it")
        return SlideError(f"{expected}, bins of {size[1]} µm; give the square_002um folder")
    if re.match(r"[ACGT]{14,}", barcode):
        return SlideError(f"{expected}, of Visium v1 or v2; give the output of a Visium HD run")
    if barcode.startswith("cellid_"):
        return SlideError(f"{expected}, a segmented cell; give binned_outputs/square_002um")
    return SlideError(f"{expected}; give the output of a Visium HD run")


def _disagree(path: Path, what: str) -> SlideError:
    return SlideError(
        f"{path}: {what}; the file is damaged: copy it again from the Space Ranger output"
    )


def _text(values: Array) -> list[str]:
    return [v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in values]

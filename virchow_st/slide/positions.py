"""Reads the table of bins (Parquet or CSV): the grid, the tissue mask and the homography."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pyarrow import csv

from virchow_st.errors import SlideError
from virchow_st.slide.geometry import Homography
from virchow_st.slide.space_ranger import reading
from virchow_st.types import Array, BoolArray

_COLUMNS = ("in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
_LARGEST_SIDE = 100_000  # barcodes have five digits for rows and for columns
_LARGEST_PX = 1e7  # larger than any scan
_LARGEST_RESIDUAL_PX = 0.1
_LONGEST_HEAD = 1 << 16  # bytes read at most for the first line of a table


@dataclass(frozen=True, eq=False)
class BinPositions:
    """The bins of a slide.

    Attributes:
        listed: (rows, cols) bool, True for bins that the file lists (normally all of them).
        tissue_mask: (rows, cols) bool, True for bins with ``in_tissue == 1``.
        homography: from bins to full-resolution px, fitted to the listed bins.
    """

    listed: BoolArray
    tissue_mask: BoolArray
    homography: Homography


def read_positions(path: Path) -> BinPositions:
    """Read the bins, listed in any order and with any integer width.

    Raises:
        SlideError: the file is damaged, lacks columns, holds impossible values, lists bins twice
            or no tissue, or its pixel positions deviate by more than 0.1 px from a homography.
    """
    read = _read_parquet if path.suffix == ".parquet" else _read_csv
    tissue, row, col, y_px, x_px = read(path)

    _check_values(path, tissue, row, col, x_px, y_px)
    shape = (int(row.max()) + 1, int(col.max()) + 1)
    listed, tissue_mask = np.zeros(shape, bool), np.zeros(shape, bool)
    listed[row, col] = True
    tissue_mask[row, col] = tissue.astype(bool)
    if (n_listed := np.count_nonzero(listed)) != len(row):
        raise SlideError(
            f"{path}: expected every bin once; {len(row) - n_listed} are repeated; "
            "copy the file again from the Space Ranger output"
        )
    if not tissue_mask.any():
        raise SlideError(
            f"{path}: expected bins in tissue; in_tissue is 0 for all {len(row)}; check the tissue "
            "detection in Space Ranger's web_summary.html"
        )
    return BinPositions(listed, tissue_mask, _fit(path, row, col, x_px, y_px))


def _read_parquet(path: Path) -> list[Array]:
    """Read the columns, in the order of ``_COLUMNS``."""
    with reading(path, "the bin positions as Parquet"):
        file = pq.ParquetFile(path, page_checksum_verification=True)  # if pages have checksums
        names = file.schema_arrow.names
    _check_columns(path, names)
    with reading(path, "the bin positions as Parquet"):
        # Barcodes are not needed, as row and column identify a bin. Reading one column after the
        # other takes half the memory of reading all at once.
        return [
            file.read(columns=[name], use_threads=False).column(0).to_numpy() for name in _COLUMNS
        ]


def _read_csv(path: Path) -> list[Array]:
    """Read the columns from text, with a header or, as ``tissue_positions_list.csv``, without."""
    what = "the bin positions as CSV"
    with reading(path, what), path.open("rb") as file:
        first = file.readline(_LONGEST_HEAD).decode("utf-8-sig")
    delimiter = max(",;\t", key=first.count)
    cells = [cell.strip().strip('"') for cell in first.rstrip("\r\n").split(delimiter)]
    has_names = not any(cell.isdigit() for cell in cells)
    if has_names:
        _check_columns(path, cells)
    elif len(cells) != len(_COLUMNS) + 1:
        raise SlideError(
            f"{path}: expected a barcode, {', '.join(_COLUMNS)} in each line; got {len(cells)} "
            "values; copy the file again from the Space Ranger output"
        )
    with reading(path, what):
        table = csv.read_csv(
            path,
            csv.ReadOptions(column_names=None if has_names else ["barcode", *_COLUMNS]),
            csv.ParseOptions(delimiter=delimiter),
            csv.ConvertOptions(include_columns=list(_COLUMNS)),
        )
        return [table.column(name).to_numpy() for name in _COLUMNS]


def _check_columns(path: Path, names: Sequence[str]) -> None:
    if missing := [c for c in _COLUMNS if c not in names]:
        raise SlideError(
            f"{path}: expected the columns {', '.join(_COLUMNS)}; {', '.join(missing)} missing; "
            "give the square_002um folder as Space Ranger wrote it"
        )


def _check_values(path: Path, tissue: Array, row: Array, col: Array, x: Array, y: Array) -> None:
    remedy = "copy the file again from the Space Ranger output"
    if len(row) == 0:
        raise SlideError(f"{path}: expected bins; the file lists none; {remedy}")
    for name, values in (("array_row", row), ("array_col", col)):
        # A column with nulls is read as floats and is refused here, too.
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= _LARGEST_SIDE:
            raise SlideError(
                f"{path}: {name}: expected integers from 0 to {_LARGEST_SIDE - 1}; got "
                f"{values.dtype} from {values.min()} to {values.max()}; {remedy}"
            )
    if tissue.dtype.kind not in "iub" or not np.isin([tissue.min(), tissue.max()], [0, 1]).all():
        raise SlideError(f"{path}: in_tissue: expected 0 or 1; got others; {remedy}")
    for name, values in (("pxl_col_in_fullres", x), ("pxl_row_in_fullres", y)):
        if values.dtype.kind not in "iuf" or not np.abs(values).max() < _LARGEST_PX:
            raise SlideError(f"{path}: {name}: expected numbers below 1e7; got others; {remedy}")


def _fit(path: Path, row: Array, col: Array, x: Array, y: Array) -> Homography:
    try:
        homography = Homography.fit(col, row, x, y)
    except (ValueError, np.linalg.LinAlgError) as e:
        raise SlideError(
            f"{path}: expected bins that fix the geometry; {e}; "
            "copy the file again from the Space Ranger output"
        ) from None
    if homography.residual_px > _LARGEST_RESIDUAL_PX:
        raise SlideError(
            f"{path}: expected pixel positions within {_LARGEST_RESIDUAL_PX} px of a homography of "
            f"the grid; the worst is {homography.residual_px:.3g} px off; use the positions as "
            "Space Ranger wrote them, in full-resolution pixels"
        )
    return homography

"""Space Ranger 4's cells, from ``barcode_mappings.parquet``: exactly the bins of each.

The GeoJSON beside it holds outlines of these bins without their holes, rounded to 0.1 px.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from virchow_st.errors import SlideError
from virchow_st.slide.cells.assign import from_labels
from virchow_st.slide.cells.cell_map import CellMap, without_empty
from virchow_st.slide.cells.geojson import cell_name
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.space_ranger import reading
from virchow_st.types import Array

MAPPINGS = "barcode_mappings.parquet"
OUTLINES = {False: "cell_segmentations.geojson", True: "nucleus_segmentations.geojson"}
"""File of the outlines of cells, and of nuclei."""
_AGAIN = "run Space Ranger 4 with segmentation, or give a GeoJSON of the cells"
_ID = re.compile(r"(?:cellid_)?([0-9]+)(?:-[0-9]+|\.0)?")
_WHAT = "Space Ranger's table of bins and cells"


def find_mappings(path: Path) -> Path | None:
    """``barcode_mappings.parquet`` of outs, of the folder that holds outs, or beside a folder.

    Public downloads put a prefix before the name.
    """
    for folder in (path, path / "outs", path.parent):
        found = sorted(f for f in folder.glob(f"*{MAPPINGS}") if not f.name.startswith("."))
        if len(found) > 1:
            names = ", ".join(f.name for f in found)
            raise SlideError(f"{folder}: expected one {MAPPINGS}; found {names}; give one of them")
        if found:
            return found[0]
    return None


def find_outlines(path: Path, nuclei: bool) -> Path | None:
    """The GeoJSON in ``segmented_outputs``, which may be the given folder itself."""
    for folder in (
        path,
        *(path / name for name in ("segmented_outputs", "outs/segmented_outputs")),
    ):
        found = sorted(f for f in folder.glob(f"*{OUTLINES[nuclei]}") if f.name[0] != ".")
        if found:
            return found[0]
    return None


def read_mappings(path: Path, lattice: Lattice, nuclei: bool) -> CellMap:
    """Read which bins belong to which cell, row group by row group.

    Args:
        path: ``barcode_mappings.parquet``.
        lattice: of the slide's bins; what lies beyond it is left out.
        nuclei: take the bins in nuclei alone.

    Raises:
        SlideError: the file is damaged, holds no segmentation or no cells, or names bins otherwise.
    """
    with reading(path, _WHAT):
        file = pq.ParquetFile(path)
        names = {name.lower(): name for name in file.schema_arrow.names}
    wanted = ["square_002um", "cell_id", *(["in_nucleus"] if nuclei else [])]
    if missing := [name for name in wanted if name not in names]:
        raise SlideError(
            f"{path}: expected the columns {', '.join(wanted)}; {', '.join(missing)} missing: this "
            f"slide was not segmented; {_AGAIN}"
        )
    labels = np.zeros(lattice.shape, np.int32)
    number: dict[str, int] = {}
    for group in range(file.num_row_groups):
        with reading(path, _WHAT):
            table = file.read_row_group(group, columns=[names[name] for name in wanted])
        barcodes, ids, *within = (table.column(names[name]) for name in wanted)
        at, of = _cells_of(path, ids, number)
        if within:
            chosen = within[0].to_numpy(zero_copy_only=False)[at].astype(bool)
            at, of = at[chosen], of[chosen]
        row, col = _places(path, barcodes.take(pa.array(at)))
        row, col = row - lattice.row0, col - lattice.col0
        inside = (row >= 0) & (row < labels.shape[0]) & (col >= 0) & (col < labels.shape[1])
        labels[row[inside], col[inside]] = of[inside] + 1
    if not number:
        raise SlideError(f"{path}: expected cells; cell_id names none; {_AGAIN}")
    names_of = sorted(number, key=lambda name: (len(name), name))
    place = np.zeros(len(number) + 1, np.int32)  # numbers by appearance become numbers by name
    place[[number[name] + 1 for name in names_of]] = np.arange(1, len(number) + 1)
    return without_empty(from_labels(place[labels], lattice, tuple(names_of)))


def _cells_of(path: Path, ids: Any, number: dict[str, int]) -> tuple[Array, Array]:
    """Rows of a row group that belong to cells, and the numbers of these; new cells are added."""
    coded = ids.combine_chunks().dictionary_encode()
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.combine_chunks()
    of_code = np.array(
        [_number(path, value, number) for value in coded.dictionary.to_pylist()], np.int64
    )
    codes = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)
    found = np.append(of_code, -1)[codes]  # the last one is of null
    at = np.flatnonzero(found >= 0)
    return at, found[at]


def _number(path: Path, value: Any, number: dict[str, int]) -> int:
    """Number of a cell by its id in either spelling; −1 of none.

    ``12``, ``"cellid_000000012"`` and ``"cellid_000000012-1"`` are one cell; 0 is none.
    """
    if value is None:
        return -1
    match = _ID.fullmatch(str(value))
    if match is None:
        raise SlideError(
            f"{path}: cell_id: expected numbers or cellid_000000001-1; found {str(value)[:40]!a}; "
            "copy the file again from the Space Ranger output"
        )
    digits = match[1]
    if int(digits) == 0:
        return -1
    return number.setdefault(cell_name(digits), len(number))


def _places(path: Path, barcodes: Any) -> tuple[Array, Array]:
    """array_row and array_col from names such as ``s_002um_00003_00012-1``."""
    names = barcodes.to_numpy(zero_copy_only=False).astype("S32")
    if not len(names):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    letters = names.view(np.uint8).reshape(len(names), 32)
    digits = letters[:, [*range(8, 13), *range(14, 19)]].astype(np.int64) - ord("0")
    if (letters[:, :8] != np.frombuffer(b"s_002um_", np.uint8)).any() or (
        (digits < 0) | (digits > 9)
    ).any():
        raise SlideError(
            f"{path}: square_002um: expected names such as s_002um_00003_00012-1; found "
            f"{names[0].decode()!a}; copy the file again from the Space Ranger output"
        )
    tens = 10 ** np.arange(4, -1, -1)
    return digits[:, :5] @ tens, digits[:, 5:] @ tens

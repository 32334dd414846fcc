"""Counts are the same however the matrix, the positions and the folder are packed."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from visium_folder import POSITIONS, SQUARE, assert_equal_counts, matrix_file, read_all

from virchow_st.errors import SlideError
from virchow_st.slide.patch_counts import PatchCounts
from virchow_st.slide.visium_hd import VisiumHDSlide

PACKING = {
    "not compressed": {},
    "chunks, plain": {"chunks": (1000,)},
    "gzip": {"chunks": (1000,), "compression": "gzip"},
    "gzip 9, shuffled": {"chunks": (777,), "compression": "gzip", "compression_opts": 9,
                         "shuffle": True},
    "lzf": {"chunks": (1000,), "compression": "lzf", "shuffle": True},
    "checksums": {"chunks": (1000,), "compression": "gzip", "shuffle": True, "fletcher32": True},
    "one chunk, larger than the data": {"chunks": (10**6,), "maxshape": (None,),
                                        "compression": "gzip", "shuffle": True},
}  # fmt: skip


def repack(path: Path, types: dict[str, str], **how: object) -> None:
    """Write the numbers and barcodes of a matrix anew, in other types and packed otherwise."""
    with h5py.File(path, "r+") as file:
        for name in ("data", "indices", "indptr", "barcodes"):
            values = file[f"matrix/{name}"][:]
            del file[f"matrix/{name}"]
            values = values.astype(types.get(name, values.dtype))
            file.create_dataset(f"matrix/{name}", data=values, **how)


def assert_reads_the_same(outs: Path, expected: PatchCounts) -> None:
    assert_equal_counts(read_all(outs)[1], expected)


@pytest.mark.parametrize("name", PACKING)
def test_any_packing_reads_the_same(
    packed: tuple[Path, PatchCounts], tmp_path: Path, name: str
) -> None:
    outs = shutil.copytree(packed[0], tmp_path / "outs")
    repack(matrix_file(outs), {}, **PACKING[name])
    assert_reads_the_same(outs, packed[1])


@pytest.mark.parametrize(
    ("data", "index"),
    [("u1", "i4"), ("i2", "u4"), ("u2", "u8"), (">i4", ">i8"), ("i8", "i4"), ("f4", "i8"),
     ("f8", "u4"), ("u8", "i8")],
)  # fmt: skip
def test_any_type_reads_the_same(
    packed: tuple[Path, PatchCounts], tmp_path: Path, data: str, index: str
) -> None:
    outs = shutil.copytree(packed[0], tmp_path / "outs")
    types = {"data": data, "indices": index, "indptr": index, "barcodes": "S30"}
    repack(matrix_file(outs), types, chunks=(1000,), compression="gzip", shuffle=True)
    assert_reads_the_same(outs, packed[1])


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("groups", [1, 5])
def test_any_positions_read_the_same(
    packed: tuple[Path, PatchCounts], tmp_path: Path, kind: str, groups: int
) -> None:
    outs = shutil.copytree(packed[0], tmp_path / "outs")
    table = pq.read_table(outs / POSITIONS)
    order = np.random.default_rng(groups).permutation(len(table))
    table = table.take(pa.array(order))
    for name in ("in_tissue", "array_row", "array_col"):
        table = table.set_column(
            table.column_names.index(name), name, table[name].cast(getattr(pa, kind)())
        )
    # Columns in any order, with others among them.
    table = table.append_column("cluster", pa.array(["x"] * len(table)))
    table = table.select(table.column_names[::-1])
    pq.write_table(table, outs / POSITIONS, row_group_size=-(-len(table) // groups))
    assert_reads_the_same(outs, packed[1])


def test_folder_of_space_ranger_4(packed: tuple[Path, PatchCounts], tmp_path: Path) -> None:
    outs = shutil.copytree(packed[0], tmp_path / "outs")
    segmented = outs / "segmented_outputs"
    (segmented / "spatial").mkdir(parents=True)
    (segmented / "spatial" / "scalefactors_json.json").write_text('{"tissue_hires_scalef": 0.1}')
    shutil.copy(matrix_file(outs), segmented / "filtered_feature_cell_matrix.h5")
    (outs / "barcode_mappings.parquet").write_bytes(b"")
    (outs / "feature_slice.h5").write_bytes(b"")
    for size in ("008", "016"):
        shutil.copytree(outs / SQUARE, outs / "binned_outputs" / f"square_{size}um")
    assert_reads_the_same(outs, packed[1])
    assert VisiumHDSlide.open(outs).folder == outs / SQUARE
    with pytest.raises(SlideError, match="found no binned output; give the outs folder") as e:
        VisiumHDSlide.open(segmented)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("top", ["", "binned_outputs", "Colon_P2_binned_outputs"])
def test_downloads_with_prefixed_names(
    packed: tuple[Path, PatchCounts], tmp_path: Path, top: str
) -> None:
    """As on the public data pages: a prefix before every name, bins unpacked at any level."""
    square = tmp_path / top / "square_002um"
    shutil.copytree(packed[0] / SQUARE, square)
    for path in [p for p in square.rglob("*") if p.is_file()]:
        path.rename(path.with_name(f"Colon_P2_{path.name}"))
    assert_reads_the_same(tmp_path, packed[1])

"""Counts of a slide against an independent reconstruction, however it lies and is packed."""

from __future__ import annotations

import shutil
import sys
import zlib
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

from virchow_st.errors import SlideError
from virchow_st.slide.geometry import Homography
from virchow_st.slide.hdf5_chunks import Hdf5Column
from virchow_st.slide.patch_counts import PatchCounts
from virchow_st.slide.patches import lay_patches
from virchow_st.slide.visium_hd import VisiumHDSlide

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from full_slide import SMALL, write_slide

SQUARE = Path("binned_outputs", "square_002um")
POSITIONS = SQUARE / "spatial" / "tissue_positions.parquet"


def matrix_path(outs: Path, which: str = "filtered") -> Path:
    return outs / SQUARE / f"{which}_feature_bc_matrix.h5"


def read_all(outs: Path, which: str = "filtered") -> tuple[VisiumHDSlide, PatchCounts]:
    slide = VisiumHDSlide.open(outs, which)
    return slide, slide.read_counts(lay_patches(slide.tissue_mask, 0.0))


def totals(counts: PatchCounts) -> tuple[int, int]:
    """UMIs in the patches, and in all tissue."""
    return sum(int(count.sum()) for _, _, count in counts), counts.total_umi


def as_csr(patch: tuple[np.ndarray, ...], n_genes: int) -> sparse.csr_array:
    gene, position, count = patch
    order = gene.astype(np.int64) * 128 * 128 + position
    assert (np.diff(order) > 0).all()  # sorted, none twice
    assert (count > 0).all()
    return sparse.csr_array((count.astype(np.int64), (gene, position)), (n_genes, 128 * 128))


# --- how the slide lies ---------------------------------------------------------------------------

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


# --- a slide of the benchmark ---------------------------------------------------------------------


def test_benchmark_slide_equals_scipy(tmp_path: Path) -> None:
    outs = write_slide(tmp_path, SMALL)
    slide, counts = read_all(outs)
    patches = lay_patches(slide.tissue_mask, 0.0)
    with h5py.File(matrix_path(outs)) as file:
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
    with h5py.File(matrix_path(outs, "raw")) as file:
        assert file["matrix/barcodes"][:2].tolist() == [
            b"s_002um_00000_00000-1",
            b"s_002um_00000_00001-1",
        ]
    np.testing.assert_array_equal(raw_slide.tissue_mask, slide.tissue_mask)
    for a, b in zip(raw, counts, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(raw.gene_totals, counts.gene_totals)


# --- how the files are packed ---------------------------------------------------------------------

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


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PatchCounts]:
    slide = TinySlide(rows=140, cols=130, n_genes=12)
    slide.counts = np.minimum(slide.counts, 200)  # for the narrow types
    outs = slide.write(tmp_path_factory.mktemp("packed"))
    return outs, read_all(outs)[1]


def assert_reads_the_same(outs: Path, expected: PatchCounts) -> None:
    _, counts = read_all(outs)
    assert len(counts) == len(expected)
    for a, b in zip(counts, expected, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(counts.gene_totals, expected.gene_totals)


@pytest.mark.parametrize("name", PACKING)
def test_any_packing_reads_the_same(
    packed: tuple[Path, PatchCounts], tmp_path: Path, name: str
) -> None:
    outs = shutil.copytree(packed[0], tmp_path / "outs")
    repack(matrix_path(outs), {}, **PACKING[name])
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
    repack(matrix_path(outs), types, chunks=(1000,), compression="gzip", shuffle=True)
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
    shutil.copy(matrix_path(outs), segmented / "filtered_feature_cell_matrix.h5")
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


# --- parts of a dataset that are not there --------------------------------------------------------


def stretches_of(path: Path, name: str = "x") -> np.ndarray:
    with h5py.File(path) as file:
        return Hdf5Column(file[name])[:]


def test_chunk_that_was_never_written_is_noticed(tmp_path: Path) -> None:
    values = np.arange(1, 51, dtype=np.int32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, how in (("x", {"compression": "gzip"}), ("plain", {})):
            x = file.create_dataset(name, (50,), np.int32, chunks=(10,), **how)
            x[:20], x[30:] = values[:20], values[30:]
        file.create_dataset("contiguous", (50,), np.int32)
        assert (file["x"][20:30] == 0).all()  # what HDF5 makes of it
    for name in ("x", "plain"):
        with pytest.raises(ValueError, match="chunks are missing"):
            stretches_of(tmp_path / "a.h5", name)
    with pytest.raises(ValueError, match="values are missing"):
        stretches_of(tmp_path / "a.h5", "contiguous")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["x"][:] = values
    np.testing.assert_array_equal(stretches_of(tmp_path / "a.h5"), values)


def test_matrix_with_a_missing_chunk_is_refused(
    packed: tuple[Path, PatchCounts], tmp_path: Path
) -> None:
    outs = shutil.copytree(packed[0], tmp_path / "outs")
    with h5py.File(matrix_path(outs), "r+") as file:
        values = file["matrix/data"][:]
        del file["matrix/data"]
        data = file.create_dataset("matrix/data", values.shape, values.dtype, chunks=(1000,),
                                   compression="gzip")  # fmt: skip
        data[: len(values) - 1000] = values[: len(values) - 1000]
    with pytest.raises(SlideError, match="chunks are missing") as e:
        read_all(outs)
    assert "\n" not in str(e.value)


def test_chunks_packed_otherwise_are_noticed(tmp_path: Path) -> None:
    values = np.arange(100, dtype=np.uint64)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values, chunks=(50,), compression="gzip", shuffle=True)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["x"].id.write_direct_chunk((0,), values[:50].tobytes(), filter_mask=3)
    with pytest.raises(ValueError, match="not packed like the others"):
        stretches_of(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["x"].id.write_direct_chunk((0,), zlib.compress(values[:49].tobytes()))
    with pytest.raises(ValueError, match="a chunk of 392 bytes, not 400"):
        stretches_of(tmp_path / "a.h5")


def change_bytes(path: Path, old: str, new: str) -> None:
    """Change bytes, in hexadecimal, that come once in a file."""
    content = path.read_bytes()
    assert content.count(bytes.fromhex(old)) == 1
    path.write_bytes(content.replace(bytes.fromhex(old), bytes.fromhex(new)))


# Version, number of filters, six of padding; and the first filter, 8 + 8 + 8 bytes: code 2, length
# of the name, flags, number of values; name; value.
PIPELINE = "0102000000000000"
SHUFFLE = "0200080001000100" + b"shuffle\0".hex()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (PIPELINE + SHUFFLE, PIPELINE.replace("0102", "0100") + SHUFFLE, "chunks of other than"),
        (SHUFFLE, SHUFFLE.replace("01000100", "01000000"), "shuffled by|cannot|Unable"),
        (SHUFFLE + "08000000", SHUFFLE + "00000000", r"shuffled by \(0,\), not 8"),
    ],
    ids=["no filters", "shuffle without a value", "shuffle of nothing"],
)
def test_headers_on_which_hdf5_crashes_are_noticed(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        values = np.arange(100)
        file.create_dataset("x", data=values, chunks=(50,), compression="gzip", shuffle=True)
    np.testing.assert_array_equal(stretches_of(path), np.arange(100))
    change_bytes(path, old, new)
    with pytest.raises((ValueError, OSError, RuntimeError), match=said):
        stretches_of(path)


def test_chunks_of_impossible_sizes_are_noticed(tmp_path: Path) -> None:
    """Before memory is taken for them."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        values = np.arange(100)
        x = file.create_dataset("x", data=values, chunks=(50,), compression="gzip", shuffle=True)
        size = x.id.get_chunk_info(0).size
        large = file.create_dataset("large", (1 << 26,), np.int64, chunks=(1 << 26,),
                                    compression="gzip", shuffle=True)  # fmt: skip
        large.id.write_direct_chunk((0,), zlib.compress(bytes(100)))
    with pytest.raises(ValueError, match="a chunk of 536870912 bytes, which is too many"):
        stretches_of(path, "large")
    # The first chunk's key in the tree: its size, no filter skipped, its place and an end.
    key = size.to_bytes(4, "little") + bytes(4 + 8 + 8)
    change_bytes(path, key.hex(), ((200 << 24) + size).to_bytes(4, "little").hex() + key[4:].hex())
    with pytest.raises(ValueError, match="chunks reach beyond the end of the file"):
        stretches_of(path)


def test_types_that_are_no_plain_numbers_are_refused(tmp_path: Path) -> None:
    shifted = h5py.h5t.STD_I32LE.copy()
    shifted.set_precision(16)
    shifted.set_offset(8)  # reads 256 as 1
    with h5py.File(tmp_path / "a.h5", "w") as file:
        space = h5py.h5s.create_simple((5,))
        h5py.h5d.create(file.id, b"x", shifted, space)
        file["matrix"] = np.zeros((5, 5))
        file.create_group("group")
    with pytest.raises(ValueError, match="type is no plain"):
        stretches_of(tmp_path / "a.h5")
    for name in ("matrix", "group"):
        with pytest.raises(ValueError, match="expected a list of values"):
            stretches_of(tmp_path / "a.h5", name)


def test_stretches_are_slices(tmp_path: Path) -> None:
    values = np.arange(1000, dtype=np.int64) ** 3
    with h5py.File(tmp_path / "a.h5", "w") as file:
        x = file.create_dataset("x", data=values, chunks=(64,), compression="gzip", shuffle=True)
        stretches = Hdf5Column(x)
        assert len(stretches) == 1000
        assert stretches.dtype == np.int64
        for start, stop in [(0, 0), (0, 1), (63, 65), (5, 5), (64, 128), (999, 1000), (990, 2000),
                            (2000, 3000), (0, 1000)]:  # fmt: skip
            np.testing.assert_array_equal(stretches[start:stop], values[start:stop])


# --- matrix and positions -------------------------------------------------------------------------


def test_counts_beyond_any_bin_are_refused(
    packed: tuple[Path, PatchCounts], tmp_path: Path
) -> None:
    outs = shutil.copytree(packed[0], tmp_path / "outs")
    with h5py.File(matrix_path(outs), "r+") as file:
        file["matrix/data"][3] = 1 << 24  # 1, its bytes the wrong way round
    with pytest.raises(SlideError, match="expected UMI counts.*got 1 to 16777216") as e:
        read_all(outs)
    assert "\n" not in str(e.value)


def test_filtered_matrix_of_another_slide_is_refused(tmp_path: Path) -> None:
    """Of the same size, so that no bin is off the grid."""
    outs = TinySlide(rows=130, cols=130, n_genes=6, seed=1).write(tmp_path / "a")
    other = TinySlide(rows=130, cols=130, n_genes=6, seed=2).write(tmp_path / "b")
    shutil.copy(matrix_path(other), matrix_path(outs))
    with pytest.raises(SlideError, match="are missing, and .* outside tissue are present") as e:
        read_all(outs)
    assert "\n" not in str(e.value)
    assert "same slide" in str(e.value)
    shutil.copy(matrix_path(other, "raw"), matrix_path(outs, "raw"))
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

"""Parts of an HDF5 dataset that are missing, damaged or packed otherwise."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from visium_folder import matrix_file, read_all

from virchow_st.errors import SlideError
from virchow_st.slide.hdf5_chunks import Hdf5Column
from virchow_st.slide.patch_counts import PatchCounts


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
    with h5py.File(matrix_file(outs), "r+") as file:
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

"""Other ways to keep the tokens (N, T, T, D) of a store, and how each is read, for `bench_store`.

A reader is a context manager that opens the files under a folder and gives a function from a
patch's index to its tokens, in an array of their own. HDF5 and zarr hold one array (N, T·T, D) with
a patch a chunk, as TRIDENT writes patch features, without compression.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import zarr

from virchow_st.store.reader import open_store

Read = Callable[[int], np.ndarray]
HAS_LITDATA = find_spec("litdata") is not None


def write_peers(folder: Path, tokens: np.ndarray) -> None:
    """The tokens (N, T, T, D) as a memmap, HDF5, zarr and litdata."""
    np.save(folder / "tokens.npy", tokens)
    n, dim = len(tokens), tokens.shape[-1]
    flat, chunk = tokens.reshape(n, -1, dim), (1, tokens[0].size // dim, dim)
    with h5py.File(folder / "tokens.h5", "w") as file:
        file.create_dataset("features", data=flat, chunks=chunk)
    array = zarr.create_array(
        folder / "tokens.zarr", shape=flat.shape, chunks=chunk, dtype="f2", compressors=None
    )
    array[:] = flat
    if HAS_LITDATA:
        from litdata import optimize

        optimize(
            partial(one_patch, str(folder / "tokens.npy")),
            list(range(n)),
            str(folder / "tokens.lit"),
            chunk_bytes="64MB",
            num_workers=1,
        )


def one_patch(path: str, i: int) -> np.ndarray:
    return np.array(np.load(path, mmap_mode="r")[i])


@contextmanager
def read_memmap(folder: Path) -> Iterator[Read]:
    mapped = np.load(folder / "tokens.npy", mmap_mode="r").view(np.ndarray)
    yield lambda i: mapped[i].copy()


@contextmanager
def read_store(folder: Path) -> Iterator[Read]:
    store = open_store(folder / "patches.vst")
    yield lambda i: store[i].tokens


@contextmanager
def read_hdf5(folder: Path) -> Iterator[Read]:
    with h5py.File(folder / "tokens.h5", "r") as file:
        features = file["features"]
        yield lambda i: features[i]


@contextmanager
def read_zarr(folder: Path) -> Iterator[Read]:
    array = zarr.open_array(folder / "tokens.zarr", mode="r")
    yield lambda i: np.asarray(array[i])


@contextmanager
def read_litdata(folder: Path) -> Iterator[Read]:
    from litdata import StreamingDataset

    dataset = StreamingDataset(str(folder / "tokens.lit"))
    yield lambda i: np.asarray(dataset[i])


# Name → reader, and what it reads under the folder.
WAYS = {
    "numpy memmap copy": (read_memmap, "tokens.npy"),
    "store": (read_store, "patches.vst"),
    "HDF5, chunk per patch": (read_hdf5, "tokens.h5"),
    "zarr v3, chunk per patch": (read_zarr, "tokens.zarr"),
}
if HAS_LITDATA:
    WAYS["litdata"] = (read_litdata, "tokens.lit")


def drop_pages(files: list[Path]) -> float:
    """Ask the kernel to forget the files; the share of them that it nevertheless keeps, 0 to 1."""
    step, kept, looked_at = 1 << 20, 0, 0
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        for offset in range(0, os.fstat(descriptor).st_size, step):
            looked_at += 1
            with suppress(BlockingIOError):
                kept += os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
        os.close(descriptor)
    return kept / max(looked_at, 1)


def files_under(path: Path) -> list[Path]:
    return [p for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file()]

"""Other formats for tokens (N, T, T, D) and their readers, for `bench_store`.

A reader is a context manager that opens the files under a folder and gives a function from a
patch's index to its tokens, in a new array. zarr holds one array (N, T·T, D) with one patch per
chunk and without compression, as HDF5 does. Formats whose package is not installed are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import zarr

from virchow_st.bench.store import Read, Reader

HAS_LITDATA = find_spec("litdata") is not None


def write_peers(folder: Path) -> None:
    """Write the tokens in the folder's ``tokens.npy`` as zarr and litdata."""
    tokens = np.load(folder / "tokens.npy", mmap_mode="r")
    flat = tokens.reshape(len(tokens), -1, tokens.shape[-1])
    array = zarr.create_array(
        folder / "tokens.zarr",
        shape=flat.shape,
        chunks=(1, *flat.shape[1:]),
        dtype="f2",
        compressors=None,
    )
    array[:] = flat
    if HAS_LITDATA:
        from litdata import optimize

        optimize(
            partial(one_patch, str(folder / "tokens.npy")),
            list(range(len(tokens))),
            str(folder / "tokens.lit"),
            chunk_bytes="64MB",
            num_workers=1,
        )


def one_patch(path: str, i: int) -> np.ndarray:
    return np.array(np.load(path, mmap_mode="r")[i])


@contextmanager
def read_zarr(folder: Path) -> Iterator[Read]:
    array = zarr.open_array(folder / "tokens.zarr", mode="r")
    yield lambda i: np.asarray(array[i])


@contextmanager
def read_litdata(folder: Path) -> Iterator[Read]:
    from litdata import StreamingDataset

    dataset = StreamingDataset(str(folder / "tokens.lit"))
    yield lambda i: np.asarray(dataset[i])


PEERS: dict[str, tuple[Reader, str]] = {"zarr v3, one patch per chunk": (read_zarr, "tokens.zarr")}
if HAS_LITDATA:
    PEERS["litdata"] = (read_litdata, "tokens.lit")

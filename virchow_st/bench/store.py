"""``vst bench store``: token reads, panel reads and writes, each against a plain implementation."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy import sparse

from virchow_st.bench.limits import copy_rate, disk_rates
from virchow_st.bench.samples import COMMIT, N_GENES, draw_patches, write_store
from virchow_st.bench.tables import Cell, Table, interleaved
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.store import format as fmt
from virchow_st.store.format import Kind
from virchow_st.store.panel_reads import read_dense, read_sparse
from virchow_st.store.reader import open_store
from virchow_st.store.writer import PatchRecord
from virchow_st.types import PATCH_BINS, PATCH_POSITIONS, SCALES_UM, Array, Float32Array, Int64Array

STORE = "patches.vst"
PANEL = 50

Read = Callable[[int], Array]  # index of a patch → its tokens, in a new array
Reader = Callable[[Path], AbstractContextManager[Read]]


def measure(
    folder: Path,
    progress: Progress = SILENT,
    *,
    n_patches: int = 64,
    dim: int = 1280,
    rounds: int = 8,
) -> list[Table]:
    """Measure a store whose patches are like those of Virchow2 on a colon slide.

    Args:
        folder: Scratch folder, on the disk to measure; takes about 3 MB per patch.
        progress: Receives notes, warnings and step counts.
        n_patches: Number of patches to write.
        dim: Channels of a token.
        rounds: Timed passes; the best time is used.
    """
    progress.note(f"store: writing {n_patches} patches")
    records = list(draw_patches(n_patches, dim))
    writing = time_writes(folder, records)
    write_plain_tokens(folder, np.stack([record.tokens for record in records]))
    progress.note("store: reading tokens and panels")
    return [
        tokens_table(time_warm_reads(folder, WAYS, n_patches, rounds), records[0].tokens.nbytes),
        writing,
        time_panels(folder, rounds),
    ]


# --- tokens -------------------------------------------------------------------------------------


def write_plain_tokens(folder: Path, tokens: Array) -> None:
    """Write the tokens (N, T, T, D) as one .npy array, and as HDF5 with one chunk per patch.

    HDF5 holds (N, T·T, D) uncompressed, as TRIDENT writes patch features.
    """
    np.save(folder / "tokens.npy", tokens)
    flat = tokens.reshape(len(tokens), -1, tokens.shape[-1])
    with h5py.File(folder / "tokens.h5", "w") as file:
        file.create_dataset("features", data=flat, chunks=(1, *flat.shape[1:]))


@contextmanager
def _read_memmap(folder: Path) -> Iterator[Read]:
    mapped = np.load(folder / "tokens.npy", mmap_mode="r").view(np.ndarray)
    yield lambda i: mapped[i].copy()


@contextmanager
def _read_store(folder: Path) -> Iterator[Read]:
    store = open_store(folder / STORE)
    yield lambda i: store[i].tokens


@contextmanager
def _read_hdf5(folder: Path) -> Iterator[Read]:
    with h5py.File(folder / "tokens.h5", "r") as file:
        features = file["features"]
        yield lambda i: features[i]


# Name → reader and its file under the folder; the others are compared with the first.
WAYS: dict[str, tuple[Reader, str]] = {
    "numpy memmap copy": (_read_memmap, "tokens.npy"),
    "store": (_read_store, STORE),
    "HDF5, one patch per chunk": (_read_hdf5, "tokens.h5"),
}


def time_warm_reads(
    folder: Path, ways: Mapping[str, tuple[Reader, str]], n: int, rounds: int
) -> dict[str, float]:
    """Seconds per patch of each reader, in random order with files in the page cache."""
    order = np.random.default_rng(1).permutation(n).tolist()
    with ExitStack() as stack:
        reads = [stack.enter_context(reader(folder)) for reader, _ in ways.values()]
        for i in order[:5]:
            for read in reads[1:]:
                np.testing.assert_array_equal(read(i).ravel(), reads[0](i).ravel())
        seconds = interleaved(*(partial(read_all, read, order) for read in reads), rounds=rounds)
    return {name: s / n for name, s in zip(ways, seconds, strict=True)}


def read_all(read: Read, order: Sequence[int]) -> None:
    """Read patches one after another and discard them."""
    for i in order:
        read(i)


def tokens_table(warm: Mapping[str, float], n_bytes: int) -> Table:
    """Table of the seconds per patch of ``n_bytes``, relative to the first reader."""
    copy_s = n_bytes / copy_rate(n_bytes)
    memmap_s = next(iter(warm.values()))
    rows: list[list[Cell]] = [
        [name, 1e6 * s, n_bytes / s / 1e9, memmap_s / s, copy_s / s] for name, s in warm.items()
    ]
    return Table(
        "Tokens of a patch, read in random order, in the page cache",
        ["", "µs", "GB/s", "ratio to memmap", "share of memcpy"],
        rows,
        [
            f"{n_bytes / 1e3:.0f} kB per patch, each into an array of its own. The store compares "
            "checksums when it first reads a record, so not here; the others have none. "
            f"memcpy: {n_bytes / copy_s / 1e9:.1f} GB/s, blocks of that size, one thread."
        ],
    )


# --- writing ------------------------------------------------------------------------------------


def time_writes(folder: Path, records: Sequence[PatchRecord]) -> Table:
    """Time writing the records as a store and as plain files; the store stays in the folder."""
    start = time.perf_counter()
    payloads = [
        [payload for _, payload in record.payloads("float16", N_GENES)] for record in records
    ]
    pack_s = time.perf_counter() - start
    size = sum(len(payload) for patch in payloads for payload in patch)
    plain_s = _write_plainly(folder / "plain.bin", payloads)
    store_s = write_store(folder / STORE, records)
    (folder / "plain.bin").unlink()
    disk = disk_rates(folder)
    larger = (folder / STORE / "data.mdb").stat().st_size / size - 1

    def row(name: str, seconds: float, *, on_disk: bool = True) -> list[Cell]:
        rate = size / seconds
        share = rate / disk.write if on_disk else None
        return [name, seconds, rate / 1e6, plain_s / seconds, share]

    return Table(
        f"Writing {size / 1e6:.0f} MB, synced every {COMMIT} patches",
        ["", "s", "MB/s", "ratio to plain", "share of the disk"],
        [
            row("plain file", plain_s),
            row("store", store_s),
            row("of which packing and JPEG", pack_s, on_disk=False),
        ],
        [
            "The plain file takes the same payloads; the store makes them (packing, JPEG), adds "
            "checksums and ends with its manifest. "
            f"disk: {disk.write / 1e6:.0f} MB/s into one file with one fsync; one pass each, so "
            f"that the disk's variation shows. data.mdb is {larger:.2%} larger than the payloads."
        ],
    )


def _write_plainly(path: Path, payloads: Sequence[Sequence[bytes]]) -> float:
    """Seconds to write the same payloads to a plain file with as many syncs."""
    start = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for at in range(0, len(payloads), COMMIT):
            for patch in payloads[at : at + COMMIT]:
                for payload in patch:
                    file.write(payload)
            os.fsync(file.fileno())
    return time.perf_counter() - start


# --- panels -------------------------------------------------------------------------------------


def time_panels(folder: Path, rounds: int) -> Table:
    """Time decoding a record to the counts of its 50 most abundant genes."""
    store = open_store(folder / STORE)
    payload = store.record(0, Kind.COUNTS)
    panel = np.random.default_rng(2).permutation(np.argsort(-store.genes.totals)[:PANEL])
    out, matrix = np.empty((PANEL, PATCH_BINS, PATCH_BINS), np.float32), _csr_of(payload)
    expected = _dense_by_scipy(matrix, panel)
    np.testing.assert_array_equal(read_dense(payload, N_GENES, panel, out), expected)

    def all_scales() -> None:
        counts = read_sparse(payload, N_GENES, panel)
        for bin_um in SCALES_UM[1:]:
            counts.pooled(bin_um)

    calls: dict[str, Callable[[], Any]] = {
        "scipy: unpack, slice rows, toarray": lambda: _dense_by_scipy(_csr_of(payload), panel),
        "the same from a matrix kept in memory": partial(_dense_by_scipy, matrix, panel),
        "dense_counts": partial(read_dense, payload, N_GENES, panel),
        "the same into a caller's buffer": partial(read_dense, payload, N_GENES, panel, out),
        "panel_counts, sparse": partial(read_sparse, payload, N_GENES, panel),
        "the same at 2, 4, 8 and 16 µm": all_scales,
    }
    seconds = interleaved(*calls.values(), rounds=4 * rounds, burst=5)
    return Table(
        f"{PANEL} genes of a patch, from the record's bytes to (G, 128, 128) float32",
        ["", "µs", "ratio to scipy"],
        [[name, 1e6 * s, seconds[0] / s] for name, s in zip(calls, seconds, strict=True)],
        [
            f"{matrix.nnz:,} non-zeros, {len(payload) / matrix.nnz:.2f} bytes each; "
            "every number in the record is checked."
        ],
    )


def _csr_of(payload: memoryview) -> sparse.csr_array:
    """Unpack the whole record with the plain unpacker."""
    stored = fmt.unpack_counts(payload, N_GENES)
    indptr = np.zeros(N_GENES + 1, np.int64)
    indptr[stored.genes + 1] = np.diff(stored.indptr)
    columns = stored.positions.astype(np.int32)
    shape = (N_GENES, PATCH_POSITIONS)
    return sparse.csr_array((stored.counts, columns, np.cumsum(indptr)), shape=shape)


def _dense_by_scipy(matrix: sparse.csr_array, panel: Int64Array) -> Float32Array:
    dense = matrix[panel].toarray().astype(np.float32)
    return np.asarray(dense.reshape(-1, PATCH_BINS, PATCH_BINS))

"""The store against other ways to keep the same tokens and counts, in one run on one disk.

Reads: whole patches of float16 tokens in random order, each into an array of its own, one thread.
The store compares a record's checksum when it first reads it, so in the cold pass and not in the
warm ones; none of the others does at all. Warm: all in the page cache, best of several passes in
turns. Cold: the files' pages dropped (`posix_fadvise`, looked after with reads that may not wait)
and everything opened anew, one pass. `store_peers` holds the others.

    python benchmarks/bench_store.py [--patches 200] [--dim 1280] [--folder DIR] [--json FILE]

litdata takes part where it is installed (``pip install litdata``).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import h5py
import lmdb
import numpy as np
import xxhash
import zarr
from bench_kernels import machine
from scipy import sparse
from store_peers import HAS_LITDATA, WAYS, Read, drop_pages, files_under, write_peers

from virchow_st.kernels.table import draw_record
from virchow_st.store import format as fmt
from virchow_st.store.format import Kind, PatchInfo
from virchow_st.store.panel_reads import read_dense, read_sparse
from virchow_st.store.reader import open_store
from virchow_st.store.writer import PatchRecord, StoreWriter
from virchow_st.types import PATCH_POSITIONS

GRID = 16
N_GENES = 18_085
BATCH = 16  # patches a commit


# --- what is stored -----------------------------------------------------------------------------


def draw_patches(n: int, dim: int) -> Iterator[PatchRecord]:
    """Patches of the size and density of real ones; every fourth has the same counts and image."""
    rng = np.random.default_rng(0)
    counts = [draw_record(rng, N_GENES) for _ in range(4)]
    images = [draw_image(rng) for _ in range(4)]
    mask = np.ones((128, 128), bool)
    for i in range(n):
        gene, position, count = counts[i % 4]
        tokens = rng.standard_normal((GRID, GRID, dim), np.float32).astype(np.float16)
        info = PatchInfo(0, 128 * i, np.zeros((4, 2)), 1.0, int(count.sum()))
        yield PatchRecord(
            info, mask, mask, gene, position, count, images[i % 4], tokens[0, 0], tokens
        )


def draw_image(rng: np.random.Generator) -> np.ndarray:
    """A picture that JPEG makes about as large as H&E."""
    blobs = cv2.resize(rng.integers(60, 250, (48, 48, 3), np.uint8), (256, 256))
    return np.clip(blobs + rng.normal(0, 6, blobs.shape), 0, 255).astype(np.uint8)


def write_store(folder: Path, records: list[PatchRecord]) -> float:
    """Seconds to pack, commit and finish."""
    dim = records[0].tokens.shape[-1]
    total = np.zeros(N_GENES, np.int64)
    for record in records:
        np.add.at(total, record.gene, record.count)
    names = [f"G{g}" for g in range(N_GENES)]
    start = time.perf_counter()
    with StoreWriter(folder / "patches.vst", {"options": {}, "inputs": {}}) as writer:
        for at in range(0, len(records), BATCH):
            writer.append(records[at : at + BATCH])
        writer.finish(
            {
                "patient": "A",
                "slide": "A",
                "grid": GRID,
                "dim": dim,
                "token_um": 256 // GRID,
                "token_layout": [],
                "genes": {"id": names, "symbol": names, "total": total.tolist()},
                "homography": np.eye(3).tolist(),
                "mpp": 0.25,
                "bin_um": 2,
                "patch_bins": 128,
                "grid_shape": [128, 128 * len(records)],
                "tissue_bins": {"slide": 0, "patches": 0},
                "encoder": {"name": "random", "weights": "", "licence": ""},
                "software": {},
            }
        )
    return time.perf_counter() - start


def write_plainly(folder: Path, payloads: list[list[bytes]]) -> float:
    """Seconds to write the same payloads one after the other and sync as often."""
    start = time.perf_counter()
    with open(folder / "plain.bin", "wb", buffering=0) as file:
        for at in range(0, len(payloads), BATCH):
            for patch in payloads[at : at + BATCH]:
                for payload in patch:
                    file.write(payload)
            os.fsync(file.fileno())
    return time.perf_counter() - start


# --- reads --------------------------------------------------------------------------------------


def time_reads(folder: Path, n: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds a patch of every way to keep the tokens, cold and warm."""
    order = np.random.default_rng(1).permutation(n).tolist()
    rows = []
    for name, (reader, path) in WAYS.items():
        kept = drop_pages(files_under(folder / path))
        with reader(folder) as read:
            start = time.perf_counter()
            read_all(read, order)
            rows.append({"name": name, "cold_s": (time.perf_counter() - start) / n, "kept": kept})

    with ExitStack() as stack:
        reads = [stack.enter_context(reader(folder)) for reader, _ in WAYS.values()]
        for i in order[:5]:
            assert all(np.array_equal(r(i).ravel(), reads[0](i).ravel()) for r in reads)
        calls = [partial(read_all, read, order) for read in reads]
        for row, seconds in zip(rows, best_in_turns(calls, rounds), strict=True):
            row["warm_s"] = seconds / n
    return rows


def read_all(read: Read, order: list[int]) -> None:
    for i in order:
        read(i)


def best_in_turns(calls: list[Callable[[], Any]], rounds: int, burst: int = 1) -> list[float]:
    """Best time of a call of each, in turns of ``burst`` calls, the first turn left out."""
    best = [np.inf] * len(calls)
    for turn in range(rounds + 1):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            for _ in range(burst):
                call()
            if turn:
                best[i] = min(best[i], (time.perf_counter() - start) / burst)
    return best


# --- counts -------------------------------------------------------------------------------------


def scipy_panel(payload: memoryview, panel: np.ndarray) -> np.ndarray:
    """The same bytes through the plain unpacker and scipy's row slicing."""
    return dense_by_scipy(csr_of(payload), panel)


def csr_of(payload: memoryview) -> sparse.csr_array:
    stored = fmt.unpack_counts(payload, N_GENES)
    indptr = np.zeros(N_GENES + 1, np.int64)
    indptr[stored.genes + 1] = np.diff(stored.indptr)
    columns = stored.positions.astype(np.int32)
    shape = (N_GENES, PATCH_POSITIONS)
    return sparse.csr_array((stored.counts, columns, np.cumsum(indptr)), shape=shape)


def dense_by_scipy(matrix: sparse.csr_array, panel: np.ndarray) -> np.ndarray:
    return matrix[panel].toarray().astype(np.float32).reshape(-1, 128, 128)


def time_panels(payload: memoryview, panel: np.ndarray, rounds: int) -> list[tuple[str, float]]:
    """Seconds from a record's bytes to a panel's counts."""
    out, matrix = np.empty((len(panel), 128, 128), np.float32), csr_of(payload)
    np.testing.assert_array_equal(
        read_dense(payload, N_GENES, panel, out), scipy_panel(payload, panel)
    )

    def all_scales() -> None:
        counts = read_sparse(payload, N_GENES, panel)
        for bin_um in (4, 8, 16):
            counts.pooled(bin_um)

    calls: dict[str, Callable[[], Any]] = {
        "bytes → dense float32, scipy slicing + toarray": partial(scipy_panel, payload, panel),
        "the same without unpacking (a matrix kept in memory)": partial(
            dense_by_scipy, matrix, panel
        ),
        "bytes → dense float32, panel read": partial(read_dense, payload, N_GENES, panel),
        "the same into a caller's buffer": partial(read_dense, payload, N_GENES, panel, out),
        "bytes → sparse, panel read": partial(read_sparse, payload, N_GENES, panel),
        "bytes → sparse at 2, 4, 8 and 16 µm, panel read": all_scales,
    }
    return list(zip(calls, best_in_turns(list(calls.values()), 4 * rounds, burst=5), strict=True))


# --- the run ------------------------------------------------------------------------------------


def measure(folder: Path, n: int, dim: int, rounds: int) -> dict[str, Any]:
    records = list(draw_patches(n, dim))
    payloads = [[payload for _, payload in record.payloads("float16")] for record in records]
    n_bytes = sum(len(payload) for patch in payloads for payload in patch)
    figures: dict[str, Any] = {"patches": n, "dim": dim, "bytes": n_bytes}
    start = time.perf_counter()
    for record in records:
        record.payloads("float16")
    figures["pack_s"] = time.perf_counter() - start
    figures["write_store_s"] = write_store(folder, records)
    figures["write_plain_s"] = write_plainly(folder, payloads)
    figures["store_bytes"] = (folder / "patches.vst" / "data.mdb").stat().st_size
    write_peers(folder, np.stack([record.tokens for record in records]))
    del records, payloads

    figures["reads"] = time_reads(folder, n, rounds)
    store = open_store(folder / "patches.vst")
    tokens = store.record(0, Kind.TOKENS)
    digest = partial(xxhash.xxh3_64_intdigest, tokens)
    figures["checksum_s"] = best_in_turns([digest], 4 * rounds, burst=5)[0]

    payload = store.record(0, Kind.COUNTS)
    nonzero = len(fmt.unpack_counts(payload, N_GENES).counts)
    figures["counts_nonzero"] = nonzero
    figures["counts_bytes"] = len(payload)
    panel = np.random.default_rng(2).permutation(np.argsort(-store.genes.totals)[:50])
    figures["panel"] = [
        {"name": name, "seconds": seconds} for name, seconds in time_panels(payload, panel, rounds)
    ]
    return figures


def report(figures: dict[str, Any]) -> None:
    patch_bytes = GRID * GRID * figures["dim"] * 2
    reads = figures["reads"]
    print(f"\n{figures['patches']} patches of {patch_bytes / 1e3:.0f} kB of tokens, random order")
    print(f"{'':30}{'warm':>10}{'of memmap':>14}{'cold':>14}{'of memmap':>14}")
    for row in reads:
        warm, cold = row["warm_s"], row["cold_s"]
        print(
            f"{row['name']:30}{warm * 1e6:7.0f} µs{reads[0]['warm_s'] / warm:13.2f}×"
            f"{cold * 1e6:11.0f} µs{reads[0]['cold_s'] / cold:13.2f}×"
        )
    kept = max(row["kept"] for row in reads)
    print(f"(cold: the kernel kept {kept:.0%} of a file's pages at most)")
    print(f"checksum of a patch's tokens in the cache: {figures['checksum_s'] * 1e6:.0f} µs")

    size, pack = figures["bytes"], figures["pack_s"]
    print(f"\nwriting {size / 1e6:.0f} MB, a sync every {BATCH} patches")
    store, plain = figures["write_store_s"], figures["write_plain_s"]
    for name, seconds in (
        ("plain file", plain),
        ("store, packing and JPEG included", store),
        ("of which packing and JPEG", pack),
    ):
        print(f"{name:36}{seconds:7.2f} s{size / seconds / 1e6:9.0f} MB/s")
    print(f"size of data.mdb: {figures['store_bytes'] / size - 1:.2%} more than the payloads")

    nonzero = figures["counts_nonzero"]
    print(f"\ncounts of a patch: {nonzero:,} non-zeros of {N_GENES:,} genes")
    for name, n_bytes in (
        ("store", figures["counts_bytes"]),
        ("COO, int32", 12 * nonzero),
        ("dense float32", 4 * N_GENES * PATCH_POSITIONS),
    ):
        print(f"{name:20}{n_bytes / nonzero:12.2f} bytes a non-zero")

    print(f"\n{'50 genes of a patch':56}{'time':>10}{'ratio':>9}")
    for row in figures["panel"]:
        ratio = figures["panel"][0]["seconds"] / row["seconds"]
        print(f"{row['name']:56}{row['seconds'] * 1e6:7.0f} µs{ratio:8.1f}×")


def main() -> None:
    parser = argparse.ArgumentParser(description="The store against other ways to keep the same.")
    parser.add_argument("--patches", type=int, default=200, help="patches to write, 2.5 MB each")
    parser.add_argument("--dim", type=int, default=1280, help="channels of a token")
    parser.add_argument("--rounds", type=int, default=10, help="timed passes; the best counts")
    parser.add_argument("--folder", type=Path, help="where to write, on the disk to measure")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()

    about = machine() | {m.__name__: m.__version__ for m in (lmdb, h5py, zarr)}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures = measure(Path(folder), options.patches, options.dim, options.rounds)
    report(figures)
    if not HAS_LITDATA:
        print("\nlitdata: not installed")
    if options.json:
        text = json.dumps({"machine": about, **figures}, indent=1, ensure_ascii=False)
        options.json.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()

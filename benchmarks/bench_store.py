"""Times the store against other formats with the same tokens and counts, in one run on one disk.

It prints the tables of ``vst bench store`` with more patches, more formats (`store_peers`) and
cold reads. One thread reads the float16 tokens of whole patches in random order, each into a new
array. The store compares the checksum of a record when it first reads it, that is in the cold pass
only; the other formats have no checksums. Warm: all files are in the page cache; best of several
passes in alternation. Cold: the files' pages are dropped by `posix_fadvise` (which is verified by
non-blocking reads) and all files are opened again; one pass.

    python benchmarks/bench_store.py [--patches 200] [--dim 1280] [--folder DIR] [--json FILE]

litdata is included if it is installed (``pip install litdata``).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import xxhash
from report import Table, interleaved, publish
from store_peers import HAS_LITDATA, PEERS, write_peers

from virchow_st.bench import store as bench
from virchow_st.bench.limits import drop_pages
from virchow_st.bench.samples import GRID, N_GENES, draw_patches
from virchow_st.store import format as fmt
from virchow_st.store.format import Kind
from virchow_st.store.reader import open_store
from virchow_st.types import PATCH_POSITIONS

WAYS: dict[str, tuple[bench.Reader, str]] = bench.WAYS | PEERS


def time_reads(folder: Path, n: int, n_bytes: int, rounds: int) -> Table:
    """Microseconds per patch of every way to store the tokens, warm and cold."""
    cold, kept = {}, 0.0
    order = np.random.default_rng(1).permutation(n).tolist()
    for name, (reader, path) in WAYS.items():
        kept = max(kept, drop_pages(files_under(folder / path)))
        with reader(folder) as read:
            start = time.perf_counter()
            bench.read_all(read, order)
            cold[name] = (time.perf_counter() - start) / n
    warm = bench.tokens_table(bench.time_warm_reads(folder, WAYS, n, rounds), n_bytes)
    digest_s = time_checksum(folder, rounds)
    memmap_s = next(iter(cold.values()))
    return Table(
        warm.title.removesuffix(", in the page cache"),
        [*warm.columns, "cold, µs", "ratio to a cold memmap"],
        [
            [*row, 1e6 * seconds, memmap_s / seconds]
            for row, seconds in zip(warm.rows, cold.values(), strict=True)
        ],
        [
            *warm.notes,
            f"Cold: the kernel kept {kept:.0%} of a file's pages at most; one pass each. "
            f"XXH3 of a patch's tokens in the processor's cache: {1e6 * digest_s:.0f} µs.",
        ],
    )


def time_checksum(folder: Path, rounds: int) -> float:
    tokens = open_store(folder / bench.STORE).record(0, Kind.TOKENS)
    digest = partial(xxhash.xxh3_64_intdigest, tokens)
    return interleaved(digest, rounds=4 * rounds, burst=5)[0]


def files_under(path: Path) -> list[Path]:
    return [p for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file()]


def count_bytes(folder: Path) -> Table:
    """Bytes per non-zero count."""
    payload = open_store(folder / bench.STORE).record(0, Kind.COUNTS)
    nonzero = len(fmt.unpack_counts(payload, N_GENES).counts)
    ways = {
        "store": len(payload),
        "COO, int32 gene, position and count": 12 * nonzero,
        "dense float32": 4 * N_GENES * PATCH_POSITIONS,
    }
    return Table(
        "Counts of a patch",
        ["", "bytes per non-zero"],
        [[name, n_bytes / nonzero] for name, n_bytes in ways.items()],
        [f"{nonzero:,} non-zeros of {N_GENES:,} genes."],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the store against other formats.")
    parser.add_argument("--patches", type=int, default=200, help="patches to write, 2.5 MB each")
    parser.add_argument("--dim", type=int, default=1280, help="channels of a token")
    parser.add_argument("--rounds", type=int, default=10, help="timed runs; the best time is used")
    parser.add_argument("--folder", type=Path, help="scratch folder, on the disk to measure")
    parser.add_argument("--json", type=Path, help="also write the tables to this file")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        records = list(draw_patches(options.patches, options.dim))
        writing = bench.time_writes(folder, records)
        bench.write_plain_tokens(folder, np.stack([record.tokens for record in records]))
        del records
        write_peers(folder)
        n_bytes = GRID * GRID * options.dim * 2
        tables = [
            time_reads(folder, options.patches, n_bytes, options.rounds),
            writing,
            count_bytes(folder),
            bench.time_panels(folder, options.rounds),
        ]
    if not HAS_LITDATA:
        print("litdata: not installed")
    publish("store", tables, options.json, ("lmdb", "h5py", "zarr", "litdata", "scipy", "xxhash"))


if __name__ == "__main__":
    main()

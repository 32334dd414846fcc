"""Reads a full 2 µm slide from Space Ranger's files to records of patches, against other packages.

`full_slide` writes the slide once into the given folder: 3350×3350 bins, 18,085 genes, 100 M
non-zeros; the filtered matrix with its columns in random order, and the raw matrix with all bins in
row-major order. Every reader runs in a process of its own, in alternation; the best time and the
largest peak memory over the rounds are reported. The page cache is warm and the kernels of this
package are compiled before (the first call on a machine takes a few seconds longer).

- ours: positions, homography, tissue mask and patch lattice; the counts of every patch, sorted by
  gene and position and packed as records of a store.
- scanpy + pandas: `read_10x_h5`, with the positions joined to its barcodes; no patches.
- spatialdata-io: `visium_hd` on the 2 µm bins without images, bins as points; no patches.
- streaming: `h5py` reads the four large datasets of the matrix once and discards them.

    python benchmarks/bench_ingest.py FOLDER [--small] [--peer-python PYTHON] [--json FILE]

PYTHON is an interpreter with scanpy and spatialdata-io; a package that it lacks is left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from full_slide import FULL, MATRICES, SMALL, Size, write_slide
from report import Table, publish

SCRIPT = Path(__file__).with_name("ingest_sides.py")
OURS = {"ours": "ours", "ours, on one core": "ours_on_one_core", "streaming": "h5py_stream"}
PEERS = {"scanpy + pandas": ("scanpy_and_pandas", "scanpy"),
         "spatialdata-io": ("spatialdata_io", "spatialdata_io")}  # fmt: skip
COLUMNS = ("what", "time, s", "CPU time, s", "peak memory, GB", "ratio of time",
           "ratio of memory")  # fmt: skip
TARGETS = (
    "Wanted: at least 4× faster than scanpy + pandas, at most a quarter of its memory, 1.5 GB."
)

Figures = dict[str, float]


def run(python: str, side: str, outs: Path, order: str) -> Figures:
    """Run one reader in a separate process; returns its time and memory."""
    command = [python, str(SCRIPT), side, str(outs), order]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def has(python: str, package: str) -> bool:
    return not subprocess.run([python, "-c", f"import {package}"], capture_output=True).returncode


def measure(outs: Path, order: str, peer_python: str | None, rounds: int) -> dict[str, Figures]:
    """Best time and largest peak memory of each reader, in alternation; slow peers run once."""
    sides = {name: (sys.executable, side) for name, side in OURS.items()}
    for name, (side, package) in PEERS.items():
        if peer_python and has(peer_python, package):
            sides[name] = (peer_python, side)
    runs: dict[str, list[Figures]] = {name: [] for name in sides}
    run(sys.executable, "ours", outs, order)  # kernels compiled, files in the page cache
    for turn in range(rounds):
        for name, (python, side) in sides.items():
            if name != "spatialdata-io" or turn == 0:  # it takes minutes
                runs[name].append(run(python, side, outs, order))
    umi = {r["umi"] for name in runs if name != "streaming" for r in runs[name]}
    if len(umi) != 1:
        raise RuntimeError(f"{outs}: expected the same UMIs from every side; got {umi}")
    return {
        name: {
            "seconds": min(r["seconds"] for r in of_side),
            "cpu_seconds": min(r["cpu_seconds"] for r in of_side),
            "peak_gb": max(r["peak_gb"] for r in of_side),
        }
        for name, of_side in runs.items()
    }


def table(order: str, size: Size, figures: dict[str, Figures]) -> Table:
    ours = figures["ours"]
    rows: list[list[Any]] = [
        [
            name,
            side["seconds"],
            side["cpu_seconds"],
            side["peak_gb"],
            side["seconds"] / ours["seconds"],
            side["peak_gb"] / ours["peak_gb"],
        ]
        for name, side in figures.items()
    ]
    return Table(
        f"The {order} matrix of {size.side}×{size.side} bins, {size.n_genes:,} genes",
        COLUMNS,
        rows,
        ["Ratios are to ours.", TARGETS],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A whole 2 µm slide to patch records.")
    parser.add_argument("folder", type=Path, help="folder of the slide, written if missing")
    parser.add_argument("--small", action="store_true", help="400×400 bins, takes seconds")
    parser.add_argument("--peer-python", help="interpreter with scanpy and spatialdata-io")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs; the best time is used")
    parser.add_argument("--json", type=Path, help="also write the tables to this file")
    options = parser.parse_args()

    size = SMALL if options.small else FULL
    outs = write_slide(options.folder, size)
    tables = [
        table(order, size, measure(outs, order, options.peer_python, options.rounds))
        for order in MATRICES
    ]
    publish("ingest", tables, options.json, ("h5py", "pyarrow", "imagecodecs"))


if __name__ == "__main__":
    main()

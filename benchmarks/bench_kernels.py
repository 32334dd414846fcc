"""Times every kernel against its reference: all pairs of `virchow_st.kernels.table`, in one table.

Kernel and reference run on one thread, in alternation, on the same arrays. `bench_metrics.py`
times whole evaluations, in which most of these kernels are used.

    python benchmarks/bench_kernels.py [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from report import Table, interleaved, publish

from virchow_st.kernels.table import TABLE


def main() -> None:
    parser = argparse.ArgumentParser(description="Time kernels against their references.")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs; the best time is used")
    parser.add_argument("--json", type=Path, help="also write the tables to this file")
    options = parser.parse_args()

    rows = []
    for pair in TABLE:
        inputs = pair.make_inputs(np.random.default_rng(0))
        ours, reference = interleaved(
            lambda p=pair, x=inputs: p.kernel(*x),
            lambda p=pair, x=inputs: p.reference(*x),
            rounds=options.rounds,
        )
        rows.append([pair.name, 1e3 * ours, 1e3 * reference, reference / ours])
    columns = ["kernel", "ours, ms", "reference, ms", "ratio"]
    notes = ["One patch of 128 × 128 bins and 50 genes, or a record of 18,085 genes; one thread."]
    packages = ("numpy", "numba", "scipy", "scikit-image")
    publish("kernels", [Table("Kernels", columns, rows, notes)], options.json, packages)


if __name__ == "__main__":
    main()

"""The readers of the ingest benchmark, each run in a process of its own.

    python benchmarks/ingest_sides.py SIDE OUTS filtered|raw

prints a line of JSON: ``seconds`` and ``cpu_seconds`` of the work without imports; ``peak_gb``, the
peak memory of the process including imports; and ``umi``, the UMIs of tissue bins. Every reader
imports its own packages, so that another package's interpreter need not have virchow_st.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

SQUARE = Path("binned_outputs", "square_002um")
H5 = "{}_feature_bc_matrix.h5"
POSITIONS = Path("spatial", "tissue_positions.parquet")
BLOCK = 1 << 22  # entries read at once


def ours() -> Callable[[Path, str], int]:
    from virchow_st.slide.patches import lay_patches
    from virchow_st.slide.visium_hd import VisiumHDSlide
    from virchow_st.store.format import pack_counts

    def read(outs: Path, order: str) -> int:
        slide = VisiumHDSlide.open(outs, order)
        counts = slide.read_counts(lay_patches(slide.tissue_mask, 0.0))
        for patch in counts:
            pack_counts(*patch)
        return counts.total_umi

    return read


def ours_on_one_core() -> Callable[[Path, str], int]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return ours()


def h5py_stream() -> Callable[[Path, str], int]:
    import h5py

    def read(outs: Path, order: str) -> int:
        with h5py.File(outs / SQUARE / H5.format(order)) as file:
            for name in ("barcodes", "indptr", "indices", "data"):
                values = file[f"matrix/{name}"]
                for start in range(0, len(values), BLOCK):
                    values[start : start + BLOCK]
        return 0

    return read


def scanpy_and_pandas() -> Callable[[Path, str], Any]:
    import pandas as pd
    import scanpy as sc

    def read(outs: Path, order: str) -> Any:
        adata = sc.read_10x_h5(outs / SQUARE / H5.format(order))
        positions = pd.read_parquet(outs / SQUARE / POSITIONS).set_index("barcode")
        adata.obs = adata.obs.join(positions)
        return adata

    return read


def spatialdata_io() -> Callable[[Path, str], Any]:
    from spatialdata_io import visium_hd

    def read(outs: Path, order: str) -> Any:
        data = visium_hd(
            outs,
            dataset_id="slide",
            bin_size=2,
            filtered_counts_file=order == "filtered",
            load_segmentations_only=False,
            bins_as_squares=False,  # points are cheaper than squares
        )
        return data["square_002um"]

    return read


SIDES = {f.__name__: f for f in (ours, ours_on_one_core, h5py_stream, scanpy_and_pandas,
                                 spatialdata_io)}  # fmt: skip


def peak_gb() -> float:
    """Peak memory of this process; unlike ru_maxrss, it does not include the parent's."""
    status = Path("/proc/self/status").read_text("utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def umi_of(result: Any) -> int:
    if isinstance(result, int):
        return result
    in_tissue = result.obs["in_tissue"].to_numpy() == 1
    return int(result.X.sum(axis=1).A1[in_tissue].sum(dtype="float64"))


def main() -> None:
    side, outs, order = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    warnings.simplefilter("ignore")
    read = SIDES[side]()
    start, cpu = time.perf_counter(), time.process_time()
    result = read(outs, order)
    figures: dict[str, float] = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_gb": peak_gb(),
    }
    print(json.dumps({**figures, "umi": umi_of(result)}))


if __name__ == "__main__":
    main()

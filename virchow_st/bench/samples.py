"""Data for the benchmarks: patches of realistic size and density, and simulated slides."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from virchow_st.config import SimulateConfig
from virchow_st.kernels.record_cases import draw_record
from virchow_st.simulate import simulate_cohort
from virchow_st.store.format import PatchInfo
from virchow_st.store.writer import PatchRecord, StoreWriter
from virchow_st.types import BIN_UM, PATCH_BINS, PATCH_UM, STORED_IMAGE_PX, UInt8Array

N_GENES = 18_085  # genes of the human probe panel
GRID = 16
COMMIT = 16  # patches per commit, as in `vst extract`


@dataclass(frozen=True)
class SimulatedSlide:
    """Paths of a simulated slide: Space Ranger's ``outs`` and the microscope image."""

    outs: Path
    image: Path


def simulate_slide(folder: Path, bins: int, genes: int) -> SimulatedSlide:
    """Simulate a slide of ``bins`` × ``bins`` bins, unless the folder already contains it."""
    config = SimulateConfig(patients=("P1",), bins=bins, genes=genes)
    (slide,) = simulate_cohort(folder / f"slide-{bins}-{genes}", config)
    return SimulatedSlide(slide / "outs", slide / "tissue_image.tif")


def draw_patches(n: int, dim: int) -> Iterator[PatchRecord]:
    """Draw n adjacent patches of realistic size and density, with random tokens.

    Counts are as dense as those of a 2 µm colon slide (18,085 genes, 9 UMIs per bin), and images
    take as many bytes as H&E. Counts and images repeat every four patches; tokens do not.
    """
    rng = np.random.default_rng(0)
    counts = [draw_record(rng, N_GENES) for _ in range(min(n, 4))]
    images = [_draw_image(rng) for _ in range(min(n, 4))]
    mask = np.ones((PATCH_BINS, PATCH_BINS), bool)
    for i in range(n):
        gene, position, count = counts[i % 4]
        tokens = rng.standard_normal((GRID, GRID, dim), np.float32).astype(np.float16)
        info = PatchInfo(0, PATCH_BINS * i, np.zeros((4, 2)), 1.0, int(count.sum()))
        yield PatchRecord(
            info, mask, mask, gene, position, count, images[i % 4], tokens[0, 0], tokens
        )


def _draw_image(rng: np.random.Generator) -> UInt8Array:
    """Draw an image whose JPEG is about as large as that of H&E."""
    side = STORED_IMAGE_PX
    blobs = cv2.resize(rng.integers(60, 250, (48, 48, 3), np.uint8), (side, side))
    return np.clip(blobs + rng.normal(0, 6, blobs.shape), 0, 255).astype(np.uint8)


def write_store(path: Path, records: Sequence[PatchRecord], patient: str = "A") -> float:
    """Write a store, one commit per 16 patches; returns the seconds to pack, commit and finish."""
    manifest = _manifest(records, patient)
    start = time.perf_counter()
    with StoreWriter(path, {"options": {}, "inputs": {}}) as writer:
        for at in range(0, len(records), COMMIT):
            writer.append(records[at : at + COMMIT])
        writer.finish(manifest)
    return time.perf_counter() - start


def _manifest(records: Sequence[PatchRecord], patient: str) -> dict[str, Any]:
    total = np.zeros(N_GENES, np.int64)
    for record in records:
        np.add.at(total, record.gene, record.count)
    names = [f"G{g}" for g in range(N_GENES)]
    n_bins = sum(int(record.tissue_mask.sum()) for record in records)
    return {
        "patient": patient,
        "slide": patient,
        "grid": GRID,
        "dim": records[0].tokens.shape[-1],
        "token_um": PATCH_UM // GRID,
        "token_layout": [],
        "genes": {"id": names, "symbol": names, "total": total.tolist()},
        "homography": np.eye(3).tolist(),
        "mpp": 0.25,
        "bin_um": BIN_UM,
        "patch_bins": PATCH_BINS,
        "grid_shape": [PATCH_BINS, PATCH_BINS * len(records)],
        "lattice": [0, 0],
        "tissue_bins": {"slide": n_bins, "patches": n_bins},
        "encoder": {"name": "random", "weights": "", "licence": ""},
        "software": {},
    }

"""Writes small stores whose tokens determine the rates, so that a decoder can learn them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from virchow_st.store.format import PatchInfo
from virchow_st.store.reader import Store, open_store
from virchow_st.store.writer import PatchRecord, StoreWriter

JOB: dict[str, Any] = {"patient": "A", "options": {"matrix": "filtered"}, "inputs": {"seed": 0}}


def write_store(
    path: Path,
    patient: str = "A",
    n_patches: int = 4,
    *,
    n_genes: int = 6,
    grid: int = 16,
    dim: int = 8,
    seed: int = 0,
    columns: int = 2,
    rate: float = 0.3,
    job: dict[str, Any] = JOB,
    **manifest: Any,
) -> Store:
    """Write a finished store; keywords beyond the named ones replace entries of the manifest."""
    records = make_records(
        n_patches, n_genes=n_genes, grid=grid, dim=dim, seed=seed, columns=columns, rate=rate
    )
    return write_records(path, records, n_genes, patient=patient, job=job, **manifest)


def write_records(
    path: Path,
    records: Sequence[PatchRecord],
    n_genes: int,
    *,
    job: dict[str, Any] = JOB,
    token_dtype: str = "float16",
    **manifest: Any,
) -> Store:
    with StoreWriter(path, job, token_dtype, n_genes) as writer:
        writer.append(records)
        writer.finish(make_manifest(records, n_genes) | manifest)
    return open_store(path)


def make_records(
    n_patches: int,
    *,
    n_genes: int = 6,
    grid: int = 16,
    dim: int = 8,
    seed: int = 0,
    columns: int = 2,
    rate: float = 0.3,
) -> list[PatchRecord]:
    """Adjacent patches, ``columns`` per row; a gene's log-rate is linear in the token."""
    weights = np.random.default_rng(1234).normal(size=(dim, n_genes))  # the same for all patients
    rng = np.random.default_rng(seed)
    records = []
    for i in range(n_patches):
        tokens = rng.normal(size=(grid, grid, dim)).astype(np.float16)
        log_rate = np.moveaxis(tokens.astype(float) @ weights, 2, 0) / np.sqrt(dim)
        side = 128 // grid
        rates = rate * np.exp(log_rate).repeat(side, 1).repeat(side, 2)
        mask = np.ones((128, 128), bool)
        mask[: rng.integers(1, 40), : rng.integers(1, 128)] = False
        counts = rng.poisson(rates) * mask
        image = rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(32, 0).repeat(32, 1)
        row0, col0 = 128 * (i // columns), 128 * (i % columns)
        records.append(make_record(tokens, counts, mask, image, row0, col0))
    return records


def make_record(
    tokens: np.ndarray,
    counts: np.ndarray,
    mask: np.ndarray,
    image: np.ndarray,
    row0: int = 0,
    col0: int = 0,
) -> PatchRecord:
    """A record from dense (G, 128, 128) counts."""
    gene, row, col = np.nonzero(counts)
    corners = [(col0, row0), (col0 + 128, row0), (col0 + 128, row0 + 128), (col0, row0 + 128)]
    return PatchRecord(
        info=PatchInfo(row0, col0, np.array(corners, float), float(mask.mean()), int(counts.sum())),
        tissue_mask=mask,
        validity_mask=np.ones((128, 128), bool),
        gene=gene,
        position=row * 128 + col,
        count=counts[gene, row, col].astype(np.uint32),
        image=image,
        class_token=tokens.mean((0, 1)),
        tokens=tokens,
    )


def make_manifest(records: Sequence[PatchRecord], n_genes: int) -> dict[str, Any]:
    grid, _, dim = records[0].tokens.shape if records else (16, 16, 8)
    total = np.zeros(n_genes, np.int64)
    for record in records:
        np.add.at(total, record.gene, record.count)
    n_tissue = sum(int(record.tissue_mask.sum()) for record in records)
    return {
        "patient": "A",
        "slide": "A",
        "grid": grid,
        "dim": dim,
        "token_um": 256 // grid,
        "token_layout": [],
        "genes": {
            "id": [f"ENSG{g:05d}" for g in range(n_genes)],
            "symbol": [f"GENE{g}" for g in range(n_genes)],
            "total": total.tolist(),
        },
        "homography": np.eye(3).tolist(),
        "mpp": 2.0,
        "bin_um": 2,
        "patch_bins": 128,
        "grid_shape": [1024, 1024],
        "tissue_bins": {"slide": n_tissue, "patches": n_tissue},
        "encoder": {"name": "tiny", "weights": "0" * 16, "licence": ""},
        "software": {},
    }


def checksum_of_all(store: Store) -> tuple[int, list[int]]:
    """Read a store in a worker process; defined here so that a spawned process can import it."""
    sums = [int(p.tokens.view(np.uint16).sum() + p.counts().sum() + p.image.sum()) for p in store]
    return len(store), sums

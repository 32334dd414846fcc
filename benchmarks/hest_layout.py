"""Reads a folder in the layout of HEST-Bench: patches with an embedding each, and their counts.

A task is a folder with ``splits/train_K.csv`` and ``splits/test_K.csv`` (columns ``sample_id``,
``patches_path`` and ``expr_path``, relative to the task), ``var_50genes.json`` with the list
``genes``, patches as HDF5 (``img`` (n, H, W, 3) uint8, ``barcode`` (n,) or (n, 1), ``coords``
(n, 2)) and counts as h5ad.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import cv2
import h5py
import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.models.encoders.base import Encoder
from virchow_st.types import Array, Float32Array, Float64Array

LAYOUT = "a folder per task with splits/train_0.csv, splits/test_0.csv and var_50genes.json"
_COLUMNS = ("sample_id", "patches_path", "expr_path")


@dataclass(frozen=True)
class Sample:
    """The spots of one sample.

    Attributes:
        name: ``sample_id``.
        x: (n, D) float32, embeddings of the patches.
        expression: (n, G) float64 as in the file, before log1p.
        coords: (n, 2) places of the patches in px; None if the file has none.
    """

    name: str
    x: Float32Array
    expression: Float64Array
    coords: Array | None


@dataclass(frozen=True)
class Task:
    """A task: its folder, its genes, and per fold the rows of the two tables of samples."""

    folder: Path
    genes: tuple[str, ...]
    folds: tuple[tuple[list[dict[str, str]], list[dict[str, str]]], ...]


def read_tasks(folder: Path) -> list[Task]:
    """The tasks of a folder, by name.

    Raises:
        ConfigError: The folder has no task, or one of them lacks a file, a column or a gene, or has
            a sample in training and test of a fold.
    """
    found = sorted(p.parent for p in folder.glob("*/splits")) if folder.is_dir() else []
    if not found:
        raise ConfigError(f"{folder}: expected HEST-Bench's layout, {LAYOUT}; found no splits")
    return [_read_task(task) for task in found]


def _read_task(folder: Path) -> Task:
    listed = folder / "var_50genes.json"
    try:
        genes = json.loads(listed.read_text("utf-8"))["genes"]
        if not genes or not all(isinstance(gene, str) for gene in genes):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f'{listed}: expected JSON with a list "genes" of symbols') from None
    folds = []
    while (train := folder / "splits" / f"train_{len(folds)}.csv").is_file():
        test = train.with_name(f"test_{len(folds)}.csv")
        rows = _rows(train), _rows(test)
        both = {r["sample_id"] for r in rows[0]} & {r["sample_id"] for r in rows[1]}
        if both:
            raise ConfigError(f"{test}: sample {min(both)} is in {train.name} too")
        folds.append(rows)
    if not folds:
        raise ConfigError(f"{folder}: expected splits/train_0.csv and splits/test_0.csv")
    return Task(folder, tuple(genes), tuple(folds))


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as f:
            rows = list(csv.DictReader(f))
    except (OSError, UnicodeDecodeError, csv.Error):
        raise ConfigError(f"{path}: cannot be read; expected {LAYOUT}") from None
    if not rows or any(not row.get(column) for row in rows for column in _COLUMNS):
        raise ConfigError(f"{path}: expected rows with {', '.join(_COLUMNS)} in all of them")
    return rows


def read_sample(task: Task, row: dict[str, str], encoder: Encoder) -> Sample:
    """Encode the patches of a sample and read the counts of the task's genes at their barcodes."""
    patches, table = task.folder / row["patches_path"], task.folder / row["expr_path"]
    try:
        with h5py.File(patches) as f:
            barcodes = np.asarray(f["barcode"].asstr()[()]).ravel()
            coords = f["coords"][()] if "coords" in f else None
            x = np.concatenate(list(_embeddings(f["img"], encoder)))
    except (OSError, KeyError, TypeError, ValueError) as e:
        why = " ".join(str(e).split())
        raise ConfigError(f"{patches}: expected HDF5 with img and barcode ({why})") from None
    if len(x) != len(barcodes) or (coords is not None and coords.shape != (len(x), 2)):
        raise ConfigError(f"{patches}: expected as many img, barcode and coords")
    return Sample(row["sample_id"], x, _expression(table, barcodes, task.genes), coords)


def _embeddings(images: h5py.Dataset, encoder: Encoder) -> Iterator[Float32Array]:
    """One vector per patch, in batches: the class vector, of Virchow beside the mean of the tokens.

    Patches are resized to the encoder's image whatever their µm per pixel, as the benchmark does.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
        raise ValueError(f"img: {images.dtype} {images.shape}; expected uint8 (n, H, W, 3)")
    side = encoder.image_px
    way = cv2.INTER_AREA if images.shape[1] > side else cv2.INTER_CUBIC
    for start in range(0, len(images), encoder.batch):
        batch = images[start : start + encoder.batch]
        if batch.shape[1:3] != (side, side):
            batch = np.stack([cv2.resize(x, (side, side), interpolation=way) for x in batch])
        made = encoder.encode(batch)
        parts = [made.cls]
        if "virchow" in encoder.name.lower():
            parts.append(made.tokens.astype(np.float32).mean((1, 2)))
        yield np.concatenate(parts, 1).astype(np.float32)


def _expression(path: Path, barcodes: Array, genes: tuple[str, ...]) -> Float64Array:
    if find_spec("anndata") is None:
        raise ConfigError("anndata is not installed; pip install 'virchow_st[spatial]'")
    import anndata

    try:
        table = anndata.read_h5ad(path)
    except Exception as e:  # whatever h5py and anndata raise on a file that is none
        why = " ".join(str(e).split())
        raise ConfigError(f"{path}: cannot be read as h5ad ({why})") from None
    places = []
    for what, names, wanted in (("barcode", table.obs_names, barcodes),
                                ("gene", table.var_names, genes)):  # fmt: skip
        place = {str(name): i for i, name in enumerate(names)}
        if lacking := [name for name in wanted if name not in place]:
            raise ConfigError(f"{path}: expected the {what} {lacking[0]}, which it lacks")
        places.append([place[name] for name in wanted])
    x = table.X[places[0]][:, places[1]]
    values = np.asarray(x.toarray() if hasattr(x, "toarray") else x, np.float64)
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ConfigError(f"{path}: expected finite counts of at least 0")
    return values

"""``truth.h5``: the factors from which the true rate of every count can be computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from virchow_st.errors import SlideError
from virchow_st.runtime.hdf5 import written_hdf5
from virchow_st.types import Array, Float32Array, Float64Array

TRUTH_FORMAT = "virchow_st.truth/1"


@dataclass(frozen=True)
class Truth:
    """Parameters from which the counts of a simulated slide were drawn.

    ``programmes`` (K, R, C) float32, diffused; ``loadings`` (G, K) float32; ``depth`` (R, C)
    float32; ``nuclei`` (R, C) float32, share of the bin that is nucleus; ``homography`` (3, 3)
    float64, (col, row, 1) to full-res px; ``gene_ids``, ``gene_symbols`` (G,);
    ``programme_names`` (K,).
    """

    programmes: Float32Array
    loadings: Float32Array
    depth: Float32Array
    nuclei: Float32Array
    homography: Float64Array
    gene_ids: Sequence[str]
    gene_symbols: Sequence[str]
    programme_names: Sequence[str]


def write_truth(path: Path, truth: Truth, origin: dict[str, str | int]) -> None:
    """Write ``truth.h5``; ``origin`` (patient, seed ...) becomes attributes of the file."""
    side = min(128, *truth.depth.shape)
    maps = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    with written_hdf5(path) as output:
        f = output.file
        f.attrs["format"] = TRUTH_FORMAT
        for name, value in origin.items():
            f.attrs[name] = value
        f.create_dataset("programmes", data=truth.programmes, chunks=(1, side, side), **maps)
        f.create_dataset("depth", data=truth.depth, chunks=(side, side), **maps)
        f.create_dataset("nuclei", data=truth.nuclei, chunks=(side, side), **maps)
        f["loadings"] = truth.loadings
        f["homography"] = truth.homography
        for name in ("gene_ids", "gene_symbols", "programme_names"):
            strings = np.array(getattr(truth, name), dtype=object)
            f.create_dataset(name.removesuffix("s"), data=strings, dtype=h5py.string_dtype())


def read_origin(path: Path) -> dict[str, str | int]:
    """Read the origin given to `write_truth`; empty if the file is absent or of another format."""
    try:
        with h5py.File(path, "r") as f:
            attrs = dict(f.attrs)
    except OSError:
        return {}
    if attrs.pop("format", None) != TRUTH_FORMAT:
        return {}
    return {k: v if isinstance(v, str) else int(v) for k, v in attrs.items()}


def true_rate(
    truth_path: Path, gene_ids: Sequence[str], row0: int, col0: int, n_rows: int, n_cols: int
) -> Float32Array:
    """True rates from which the counts of a simulated slide were drawn, in a window of bins.

    Args:
        truth_path: ``truth.h5`` of the slide.
        gene_ids: Ids of G genes.
        row0, col0: First bin of the window.
        n_rows, n_cols: Size of the window in bins.

    Returns:
        (G, n_rows, n_cols) float32, expected UMIs per 2 µm bin.

    Raises:
        SlideError: The file is of another format, a gene is unknown, or the window exceeds the
            slide.
    """
    try:
        f = h5py.File(truth_path, "r")
    except OSError as e:
        raise SlideError(
            f"{truth_path}: expected the truth.h5 of a simulated slide; {e}; run vst simulate"
        ) from None
    with f:
        if f.attrs.get("format") != TRUTH_FORMAT:
            got = f.attrs.get("format")
            raise SlideError(
                f"{truth_path}: expected format {TRUTH_FORMAT}; got {got}; run vst simulate anew"
            )
        known = {gene: i for i, gene in enumerate(f["gene_id"].asstr()[:])}
        if missing := [gene for gene in gene_ids if gene not in known]:
            raise SlideError(
                f"{truth_path}: expected gene ids of this slide; got {missing[0]}; "
                "see gene_id in the file"
            )
        shape = f["depth"].shape
        window: Array = np.array([row0, col0, row0 + n_rows, col0 + n_cols])
        if (window[:2] < 0).any() or (window[2:] > shape).any() or n_rows < 0 or n_cols < 0:
            raise SlideError(
                f"{truth_path}: expected a window within {shape[0]} x {shape[1]} bins; "
                f"got rows {row0}-{row0 + n_rows}, columns {col0}-{col0 + n_cols}"
            )
        rows, cols = slice(row0, row0 + n_rows), slice(col0, col0 + n_cols)
        loadings = f["loadings"][:][[known[gene] for gene in gene_ids]]
        rate: Float32Array = np.tensordot(loadings, f["programmes"][:, rows, cols], axes=1)
        rate *= f["depth"][rows, cols]
    return rate

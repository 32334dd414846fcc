"""``truth.h5``: the factors from which the true rate of every count can be computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from virchow_st.errors import SlideError
from virchow_st.runtime.hdf5 import written_hdf5
from virchow_st.simulate.exposure import Exposure
from virchow_st.simulate.hidden import HiddenVariation
from virchow_st.types import Array, Float32Array, Float64Array

PLAIN_FORMAT, HIDDEN_FORMAT = "virchow_st.truth/1", "virchow_st.truth/2"
"""Formats of files without and with hidden variation; programs for the former refuse the latter."""
Origin = dict[str, str | int | float]


@dataclass(frozen=True)
class Truth:
    """Parameters from which the counts of a simulated slide were drawn.

    ``programmes`` (K, R, C) float32, diffused; ``loadings`` (G, K) float32; ``depth`` (R, C)
    float32; ``nuclei`` (R, C) float32, share of the bin that is nucleus; ``homography`` (3, 3)
    float64, (col, row, 1) to full-res px; ``gene_ids``, ``gene_symbols`` (G,);
    ``programme_names`` (K,); ``hidden`` the hidden variation, or None for none; ``exposure``
    the part of the depth that is exposure, or None where it is not recorded.
    """

    programmes: Float32Array
    loadings: Float32Array
    depth: Float32Array
    nuclei: Float32Array
    homography: Float64Array
    gene_ids: Sequence[str]
    gene_symbols: Sequence[str]
    programme_names: Sequence[str]
    hidden: HiddenVariation | None = None
    exposure: Exposure | None = None


def write_truth(path: Path, truth: Truth, origin: Origin) -> None:
    """Write ``truth.h5``; ``origin`` (patient, seed ...) becomes attributes of the file.

    Of hidden variation the file holds what its fields are computed from, in the group ``hidden``.
    """
    side = min(128, *truth.depth.shape)
    maps = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    with written_hdf5(path) as output:
        f = output.file
        f.attrs["format"] = PLAIN_FORMAT if truth.hidden is None else HIDDEN_FORMAT
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
        if truth.hidden is not None:
            group = f.create_group("hidden")
            group["sd"] = truth.hidden.sd
            group["key"] = np.uint64(truth.hidden.key)
            group["knot_bins"] = truth.hidden.knot_bins
        if truth.exposure is not None:
            group = f.create_group("exposure")
            for name in ("slide", "rows", "cols"):
                group[name] = getattr(truth.exposure, name)


def read_origin(path: Path) -> Origin:
    """Read the origin given to `write_truth`; empty if the file is absent or of another format."""
    try:
        with h5py.File(path, "r") as f:
            attrs = dict(f.attrs)
    except OSError:
        return {}
    if attrs.pop("format", None) not in (PLAIN_FORMAT, HIDDEN_FORMAT):
        return {}
    return {k: v if isinstance(v, str) else v.item() for k, v in attrs.items()}


def true_rate(
    truth_path: Path,
    gene_ids: Sequence[str],
    row0: int,
    col0: int,
    n_rows: int,
    n_cols: int,
    *,
    shown: bool = False,
) -> Float32Array:
    """True rates from which the counts of a simulated slide were drawn, in a window of bins.

    The rate of a gene is the depth times its loadings times the programmes, times its factor of
    hidden variation where the slide has any. Depth includes the exposure (`true_exposure`).

    Args:
        truth_path: ``truth.h5`` of the slide.
        gene_ids: Ids of G genes.
        row0, col0: First bin of the window.
        n_rows, n_cols: Size of the window in bins.
        shown: Only the part that H&E shows: without hidden variation and recorded exposure.

    Returns:
        (G, n_rows, n_cols) float32, expected UMIs per 2 µm bin.

    Raises:
        SlideError: The file is of another format, a gene is unknown, or the window exceeds the
            slide.
    """
    with _opened(truth_path) as f:
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
        index = [known[gene] for gene in gene_ids]
        loadings = f["loadings"][:][index]
        rate: Float32Array = np.tensordot(loadings, f["programmes"][:, rows, cols], axes=1)
        rate *= f["depth"][rows, cols]
        if shown:
            if "exposure" in f:
                rate /= _exposure(f).map()[rows, cols].astype(np.float32)
        elif hidden := _read_hidden(f):
            for i, gene in enumerate(index):  # one at a time, to save memory
                rate[i] *= hidden.factors(gene, row0, col0, n_rows, n_cols)
    return rate


def true_exposure(truth_path: Path) -> Exposure:
    """Exposure of a slide that was simulated with ``--depth`` or ``--stripes``.

    `true_rate` contains it: ``true_rate(...) / exposure.map()[rows, cols]`` is the rate of the
    tissue, in a unit that is the same for all slides of a cohort.

    Args:
        truth_path: ``truth.h5`` of the slide.

    Returns:
        Factors of slide, rows and columns.

    Raises:
        SlideError: The file is of another format, or its slide was simulated without the two.
    """
    with _opened(truth_path) as f:
        if "exposure" not in f:
            raise SlideError(
                f"{truth_path}: expected a recorded exposure; got none; run vst simulate with "
                "--depth or --stripes"
            )
        return _exposure(f)


def _exposure(f: h5py.File) -> Exposure:
    group = f["exposure"]
    return Exposure(group["slide"][()].item(), group["rows"][:], group["cols"][:])


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """A ``truth.h5`` open for reading; raises SlideError for anything else."""
    try:
        f = h5py.File(path, "r")
    except OSError as e:
        raise SlideError(
            f"{path}: expected the truth.h5 of a simulated slide; {e}; run vst simulate"
        ) from None
    with f:
        if (got := f.attrs.get("format")) not in (PLAIN_FORMAT, HIDDEN_FORMAT):
            raise SlideError(
                f"{path}: expected format {PLAIN_FORMAT} or {HIDDEN_FORMAT}; got {got}; run vst "
                "simulate anew"
            )
        yield f


def _read_hidden(f: h5py.File) -> HiddenVariation | None:
    """Hidden variation of an open file, or None where it has none."""
    if "hidden" not in f:
        return None
    sd, key, knot_bins = (f["hidden"][name][()].item() for name in ("sd", "key", "knot_bins"))
    return HiddenVariation(sd, key, knot_bins)

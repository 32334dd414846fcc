"""What of a prediction is finished, so that one that was killed goes on to the same bytes.

The journal lies in the unfinished output, ``.NAME.part/journal.jsonl``: a fingerprint of all that
the result depends on, then a line for each band of the picture and each block of the maps that was
written, and for each batch of vectors where these are wanted, with a hash of what was written.
Whoever goes on reads each of them back and compares: what a full disk, a power cut or somebody's
hand has damaged is made again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import xxhash

from virchow_st.predict.rates import RateImages
from virchow_st.predict.stitch import Place, Stitcher, left_out
from virchow_st.runtime.atomic import remove
from virchow_st.runtime.progress import Progress
from virchow_st.schema import Count, Name, check, parse_json
from virchow_st.slide.patches import PatchTable
from virchow_st.types import BLOCK_BINS, Array, BoolArray, Float32Array

NAME = "journal.jsonl"
ZARR, RESULT = "zarr", "result"
"""Folders of the unfinished output: the maps, and what they were made into."""
VECTORS = "vectors.f16"
"""File of the unfinished output: a vector per patch."""
_TEMPORARY = "*.partial"  # what Zarr was writing when it was killed


class _Begun(TypedDict):
    fingerprint: Name


class _Part(TypedDict):
    band: NotRequired[Count]
    vectors: NotRequired[Count]
    block: NotRequired[tuple[Count, Count]]
    left_out: NotRequired[Count]
    xxh64: str


class Journal:
    """The journal of an unfinished output, opened to go on or begun anew.

    Args:
        folder: the unfinished output, locked by the caller. What lies in it is kept if it was made
            for the same fingerprint, and removed otherwise.
        fingerprint: of everything that the result depends on.
        shown: name of the output, for notes.
        progress: receives a note where leftovers are found.
    """

    def __init__(self, folder: Path, fingerprint: str, shown: object, progress: Progress) -> None:
        self._file = folder / NAME
        self._bands: dict[int, str] = {}
        self._vectors: dict[int, str] = {}
        self._blocks: dict[Place, tuple[int, str]] = {}
        self._shown, self._progress = shown, progress
        leftovers = list(folder.iterdir())
        if not leftovers:
            self._begin(fingerprint)
            return
        reason = self._read(fingerprint) or self._tidy(folder)
        if reason:
            progress.note(f"{shown}: begun anew, since what an earlier command left {reason}")
            for path in leftovers:
                remove(path)
            self._bands, self._blocks, self._vectors = {}, {}, {}
            self._begin(fingerprint)

    def band(self, top: int, rgb: Array) -> None:
        """Note that a band of the picture is written."""
        self._append({"band": top, "xxh64": digest([rgb])})

    def has_band(self, top: int, read: Callable[[], Array]) -> bool:
        """Whether a band is finished, and is on disk as it was written; ``read`` reads it."""
        return top in self._bands and _digest_of(lambda: [read()]) == self._bands[top]

    def vectors(self, first: int, rows: Array) -> None:
        """Note that the vectors of a batch, whose first patch is ``first``, are written."""
        self._append({"vectors": first, "xxh64": digest([rows])})

    def has_vectors(self, first: int, read: Callable[[], Array]) -> bool:
        """Whether the vectors of a batch are on disk as they were written; ``read`` reads them."""
        return first in self._vectors and _digest_of(lambda: [read()]) == self._vectors[first]

    def stitcher(
        self, patches: PatchTable, overlap_bins: int, shape: tuple[int, int], maps: RateImages
    ) -> Stitcher:
        """A stitcher of the patches that writes the blocks which are not finished.

        Args:
            patches, overlap_bins, shape: see `Stitcher`.
            maps: where the blocks are written, and read back.
        """

        def read(place: Place) -> Iterable[Array]:
            sides = [min(BLOCK_BINS, n - at) for n, at in zip(shape, place, strict=True)]
            return maps.read(*place, (sides[0], sides[1]))

        def write(row0: int, col0: int, rates: Float32Array, there: BoolArray) -> None:
            maps.remove(row0, col0)
            maps.write(row0, col0, rates, there)
            place = row0, col0
            line = {
                "block": place,
                "left_out": left_out(rates, there),
                "xxh64": digest(read(place)),
            }
            self._append(line)

        finished = {
            place: n_left_out
            for place, (n_left_out, expected) in self._blocks.items()
            if _digest_of(partial(read, place)) == expected
        }
        if self._blocks:
            damaged = len(self._blocks) - len(finished)
            also = f"; {damaged} are damaged and made again" if damaged else ""
            self._progress.note(f"{self._shown}: goes on after {len(finished)} blocks{also}")
        return Stitcher(patches, overlap_bins, shape, write, finished)

    # --- the file -------------------------------------------------------------------------------

    def _begin(self, fingerprint: str) -> None:
        self._file.write_text(json.dumps({"fingerprint": fingerprint}) + "\n", "ascii")

    def _append(self, line: Mapping[str, Any]) -> None:
        with open(self._file, "ab", buffering=0) as file:
            file.write((json.dumps(line) + "\n").encode())

    def _read(self, fingerprint: str) -> str:
        """Read the lines; why nothing can be kept, or an empty text."""
        try:
            content = self._file.read_bytes()
            head, *lines = content.splitlines(keepends=True)
            begun: _Begun = check(parse_json(head.decode()), _Begun)
        except (OSError, ValueError):
            return "cannot be read"
        if begun["fingerprint"] != fingerprint:
            return "is of other inputs or options"
        whole = len(head)
        for line in lines:
            try:
                part: _Part = check(parse_json(line.decode()), _Part)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            if "band" in part:
                self._bands[part["band"]] = part["xxh64"]
            elif "vectors" in part:
                self._vectors[part["vectors"]] = part["xxh64"]
            elif "block" in part:
                row, col = part["block"]
                self._blocks[row, col] = part.get("left_out", 0), part["xxh64"]
        if whole < len(content):  # its writer was killed within a line
            os.truncate(self._file, whole)
        return ""

    @staticmethod
    def _tidy(folder: Path) -> str:
        """Remove what is not part of the maps; why they cannot be kept, or an empty text."""
        zarr, result = folder / ZARR, folder / RESULT
        if not zarr.exists() and result.is_dir():
            result.rename(zarr)  # it was killed just before the end
        for path in folder.iterdir():
            if path.name not in (NAME, ZARR, VECTORS):
                remove(path)
        if not zarr.is_dir():
            return ""
        # What is written as a whole again: loadings, coarser levels of the picture, the tissue.
        coarser = zarr.glob("images/he/s[1-9]*/c")
        for path in (zarr / "tables", zarr / "labels/tissue/s0/c", *coarser):
            shutil.rmtree(path, ignore_errors=True)
        for path in zarr.rglob(_TEMPORARY):
            path.unlink()
        try:
            for path in zarr.rglob("zarr.json"):
                parse_json(path.read_text("utf-8"))
        except (OSError, ValueError):
            return "is damaged"
        return ""


def digest(arrays: Iterable[Array]) -> str:
    """Hash of arrays, their shapes and types.

    >>> digest([np.zeros((2, 3), np.float32)])
    '0c585a6e16e1527a'
    """
    hashed = xxhash.xxh64()
    for array in arrays:
        hashed.update(f"{array.dtype} {array.shape}\n".encode())
        hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()


def _digest_of(read: Callable[[], Iterable[Array]]) -> str:
    """Hash of what is read; empty where it cannot be read, for Zarr raises many kinds of errors."""
    with contextlib.suppress(Exception):
        return digest(read())
    return ""

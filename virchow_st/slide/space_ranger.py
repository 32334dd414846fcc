"""Finds the files of a Space Ranger folder, reads its scale factors, takes fingerprints."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import xxhash

from virchow_st.errors import SlideError
from virchow_st.runtime.hdf5 import HELD, is_held_by_another
from virchow_st.schema import read_json
from virchow_st.types import BIN_UM

POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
"""What the table of bins is called: by Space Ranger 3 and 4, by other tools, and by old ones."""

_LATER_POSITIONS = tuple(f"*{name}" for name in POSITIONS[1:])
# Where the folder of 2 µm bins lies below what a user gives: outs, binned_outputs or the folder
# that holds outs; downloads have their names' prefixes before either.
_PLACES = ("", "*binned_outputs/", "*outs/", "*outs/*binned_outputs/", "*/", "*/*binned_outputs/")
_FINGERPRINT_BLOCK = 1 << 20
_FINGERPRINT_BLOCKS = 16

# What the HDF5, Parquet, TIFF and image libraries raise on files that are cut off or damaged.
_DAMAGE = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ArithmeticError,
)


_SCALES_REMEDY = (
    "give the square_002um folder of a Visium HD slide, not segmented_outputs or a Visium v1 "
    "slide; if it is that folder, copy the file again from the Space Ranger output"
)


class _ScaleFactors(TypedDict):
    """``scalefactors_json.json``, as far as it is used."""

    bin_size_um: float
    tissue_hires_scalef: NotRequired[float]
    tissue_lowres_scalef: NotRequired[float]


@dataclass(frozen=True)
class SlideFiles:
    """Where the parts of one 2 µm folder lie.

    ``is_filtered`` tells whether ``matrix`` is the filtered one, whose columns are tissue bins.
    """

    folder: Path
    matrix: Path
    is_filtered: bool
    positions: Path
    scalefactors: Path


def find_files(outs: Path, matrix: str) -> SlideFiles:
    """Find the 2 µm folder in ``outs`` and the files in it, prefixed or not.

    Args:
        outs: ``outs/``, the folder that holds it, ``binned_outputs/``, or ``square_002um/`` itself.
        matrix: ``"filtered"`` or ``"raw"``.

    Raises:
        SlideError: not a folder, no or several 2 µm folders, or a file missing from it.
    """
    if not outs.is_dir():
        raise SlideError(f"{outs}: expected a folder; give Space Ranger's outs or square_002um")
    folder = _bin_folder(outs)
    matrix_path = _the_one(folder, f"*{matrix}_feature_bc_matrix.h5", "the count matrix")
    spatial = _the_one(folder, "*spatial", "the folder with bin positions")
    return SlideFiles(
        folder=folder,
        matrix=matrix_path,
        is_filtered=matrix == "filtered",
        positions=_the_one(spatial, f"*{POSITIONS[0]}", "the bin positions", *_LATER_POSITIONS),
        scalefactors=_the_one(spatial, "*scalefactors_json.json", "the scale factors"),
    )


def read_scalefactors(path: Path) -> dict[str, float]:
    """Read ``scalefactors_json.json``; its numbers, by name.

    Raises:
        SlideError: not JSON, no ``bin_size_um``, a number that is none, or bins that are not 2 µm.
    """
    values = read_json(path, _ScaleFactors, _SCALES_REMEDY, error=SlideError)
    if values["bin_size_um"] != BIN_UM:
        folder = path.parent.parent
        raise SlideError(
            f"{path}: expected bins of {BIN_UM} µm; got {values['bin_size_um']:g} µm; give "
            f"{folder.parent / 'square_002um'} instead of {folder.name}"
        )
    # type() and not isinstance: in Python, true is a whole number.
    return {name: float(v) for name, v in values.items() if type(v) in (int, float)}


def fingerprint(path: Path) -> str:
    """A quick fingerprint that tells a changed file from the same one.

    Returns:
        16 hex digits: xxHash64 of the file's size and of sixteen evenly spaced blocks of 1 MiB,
        the first and the last included (of every byte where the file is no larger than that).
    """
    digest = xxhash.xxh64()
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            digest.update(size.to_bytes(8, "little"))
            last = max(0, size - _FINGERPRINT_BLOCK)
            for i in range(_FINGERPRINT_BLOCKS):
                file.seek(last * i // (_FINGERPRINT_BLOCKS - 1))
                digest.update(file.read(_FINGERPRINT_BLOCK))
    except OSError as e:
        raise _damaged(path, "a readable file", e) from None
    return digest.hexdigest()


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into one line that names the file."""
    try:
        yield
    except _DAMAGE as e:
        raise _damaged(path, expected, e) from e


def _damaged(path: Path, expected: str, error: Exception) -> SlideError:
    if is_held_by_another(error):
        return SlideError(f"{path}: {HELD}")
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
        return SlideError(
            f"{path}: expected {expected}; it cannot be read ({os.strerror(error.errno)}); "
            "get the rights to it"
        )
    reason = " ".join(str(error).split()) or type(error).__name__
    return SlideError(
        f"{path}: expected {expected}; it cannot be read ({reason[:160]}); the file is cut off or "
        "damaged: copy it again from where Space Ranger or the scanner wrote it"
    )


def _bin_folder(outs: Path) -> Path:
    """The folder of 2 µm bins: ``outs`` itself, or in one of the places where it may lie."""
    if _visible(outs, "*_feature_bc_matrix.h5") and _visible(outs, "*spatial"):
        return outs
    for place in _PLACES:
        found = [path for path in _visible(outs, f"{place}*square_002um") if path.is_dir()]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(path) for path in found)
            raise SlideError(f"{outs}: expected one square_002um; found {names}; give one of them")
    # In these places alone: what was given may be a disk with a million files.
    other = {path.name for place in _PLACES for path in _visible(outs, f"{place}*square_0*um")}
    actual = f"only {', '.join(sorted(other))}" if other else "no binned output"
    for path in (outs, *_visible(outs, "*binned_outputs"), *_visible(outs, "*outs")):
        if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
            raise SlideError(f"{path}: cannot be read (Permission denied); get the rights to it")
    raise SlideError(
        f"{outs}: expected square_002um, the 2 µm bins, here or in outs/binned_outputs; found "
        f"{actual}; give the outs folder of a Visium HD run, with binned_outputs/square_002um in it"
    )


def _the_one(folder: Path, pattern: str, what: str, *others: str) -> Path:
    """The file of a pattern, or of the first of the other patterns that there is a file of."""
    for wanted in (pattern, *others):
        found = _visible(folder, wanted)
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found)
            raise SlideError(f"{folder}: expected one {wanted}; found {names}; keep one of them")
    raise SlideError(
        f"{folder}: expected {what}, {' or '.join((pattern, *others))}; found none; copy it from "
        "the Space Ranger output"
    )


def _visible(folder: Path, pattern: str) -> list[Path]:
    """What matches in a folder, sorted, without hidden files.

    macOS leaves ``._NAME`` beside every NAME on disks of other systems.
    """
    return sorted(
        path
        for path in folder.glob(pattern)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )

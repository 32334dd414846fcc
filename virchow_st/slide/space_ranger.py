"""Finds the files of a Space Ranger folder, reads its scale factors, and fingerprints files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NotRequired, TypedDict

import xxhash
from tifffile import TiffFileError

from virchow_st.errors import SlideError
from virchow_st.runtime.hdf5 import HELD, is_held_by_another
from virchow_st.schema import read_json
from virchow_st.types import BIN_UM

POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
"""Names of the table of bins: that of Space Ranger 3 and 4, and two of other and older tools."""

_LATER_POSITIONS = tuple(f"*{name}" for name in POSITIONS[1:])
# Where the folder of 2 µm bins may lie below the given folder, which is outs, binned_outputs or the
# folder that holds outs. In public downloads each of these names may have a prefix.
_PLACES = ("", "*binned_outputs/", "*outs/", "*outs/*binned_outputs/", "*/", "*/*binned_outputs/")
_FINGERPRINT_BLOCK = 1 << 20
_FINGERPRINT_BLOCKS = 16

# Exceptions that the HDF5, Parquet, TIFF and image libraries raise on truncated or damaged files.
_DAMAGE = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ArithmeticError,
    TiffFileError,  # a ValueError in newer releases of tifffile only
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
    """Paths of the files in one folder of 2 µm bins.

    Attributes:
        folder: the ``square_002um`` folder.
        matrix: the count matrix.
        is_filtered: whether that is the filtered matrix, whose columns are the tissue bins.
        positions: the table of bins.
        scalefactors: ``scalefactors_json.json``.
    """

    folder: Path
    matrix: Path
    is_filtered: bool
    positions: Path
    scalefactors: Path


def find_files(outs: Path, matrix: str) -> SlideFiles:
    """Find the folder of 2 µm bins below ``outs``, and its files, with prefixed names or not.

    Args:
        outs: ``outs/``, the folder that holds it, ``binned_outputs/``, or ``square_002um/`` itself.
        matrix: ``"filtered"`` or ``"raw"``.

    Raises:
        SlideError: ``outs`` is not a folder, holds no or several folders of 2 µm bins, or a file
            is missing.
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
    """Read ``scalefactors_json.json``.

    Returns:
        The file's finite numbers, by name.

    Raises:
        SlideError: the file is not JSON, lacks ``bin_size_um``, holds something else in place of a
            number, or its bins are not 2 µm.
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
    """A fast fingerprint of a file, for recognising the same file again.

    Returns:
        16 hex digits: xxHash64 of the file's size and of sixteen evenly spaced blocks of 1 MiB,
        including the first and the last (which cover every byte of files up to 16 MiB).

    Raises:
        SlideError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return fingerprint_of(file)
    except OSError as e:
        raise _damaged(path, "a readable file", e) from None


def fingerprint_of(file: BinaryIO) -> str:
    """The `fingerprint` of an open file."""
    digest = xxhash.xxh64()
    size = file.seek(0, 2)
    digest.update(size.to_bytes(8, "little"))
    last = max(0, size - _FINGERPRINT_BLOCK)
    for i in range(_FINGERPRINT_BLOCKS):
        file.seek(last * i // (_FINGERPRINT_BLOCKS - 1))
        digest.update(file.read(_FINGERPRINT_BLOCK))
    return digest.hexdigest()


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turn exceptions that libraries raise on a damaged file into a `SlideError` that names it.

    Args:
        path: the file that is read meanwhile.
        expected: what it should be, for the message.
    """
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
    """The folder of 2 µm bins: ``outs`` itself, or one below it."""
    if _visible(outs, "*_feature_bc_matrix.h5") and _visible(outs, "*spatial"):
        return outs
    for place in _PLACES:
        found = [path for path in _visible(outs, f"{place}*square_002um") if path.is_dir()]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(path) for path in found)
            raise SlideError(f"{outs}: expected one square_002um; found {names}; give one of them")
    # Do not search the whole tree: the given folder may be a disk with a million files.
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
    """The only file that matches the pattern or, failing that, the first other one with a match."""
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
    """Sorted matches of a pattern in a folder, without hidden files.

    macOS writes a hidden ``._NAME`` beside every NAME on disks of other systems.
    """
    return sorted(
        path
        for path in folder.glob(pattern)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )

"""Functions shared by the HDF5 files of a run: opening, reading, and positions of patches."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from virchow_st.errors import ConfigError, to_read
from virchow_st.runtime.hdf5 import HELD, is_held_by_another
from virchow_st.types import BIN_UM, PATCH_BINS, Array, Int64Array

AGAIN = "run `vst evaluate` again"
_LONGEST_BINS = 1 << 15  # of an array's side: 65 mm, nine capture areas of Visium HD
# What h5py raises for what is missing, damaged, or of another kind.
_UNREADABLE = (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError)


@dataclass(frozen=True)
class Window:
    """A rectangle of 2 µm bins: first row and column, and number of rows and columns."""

    row: int
    col: int
    rows: int
    cols: int

    @property
    def extent_um(self) -> tuple[float, float, float, float]:
        """(left, right, bottom, top) from the map's corner in µm, as `imshow` takes it."""
        left, top = BIN_UM * self.col, BIN_UM * self.row
        return left, left + BIN_UM * self.cols, top + BIN_UM * self.rows, top

    def cut(self, values: Array, per_bin: int = 1) -> Array:
        """The part of a map, or of an image with ``per_bin`` pixels per bin, inside the window."""
        rows = slice(per_bin * self.row, per_bin * (self.row + self.rows))
        return values[rows, per_bin * self.col : per_bin * (self.col + self.cols)]


@contextmanager
def open_hdf5(path: Path, file_format: str) -> Iterator[h5py.File]:
    """Open a file of a run; `ConfigError` if it is not HDF5 or of another format."""
    try:
        file = h5py.File(path, "r")
    except OSError as e:
        if is_held_by_another(e):
            raise ConfigError(f"{path}: {HELD}") from None
        reason = os.strerror(e.errno) if e.errno in (errno.EACCES, errno.EPERM) else e
        raise ConfigError(
            f"{path}: cannot be read as HDF5 ({reason}); {to_read(e, AGAIN)}"
        ) from None
    with file:
        with naming_file(path):
            found = file.attrs.get("format")
        if found != file_format:
            raise ConfigError(f"{path}: expected format {file_format!r}; got {found!r}; {AGAIN}")
        yield file


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Context that turns errors while reading a file into a `ConfigError` that names the file."""
    try:
        yield
    except MemoryError:
        raise ConfigError(f"{path}: expected arrays that memory holds; {AGAIN}") from None
    except _UNREADABLE as e:
        raise ConfigError(f"{path}: incomplete or damaged ({e}); {AGAIN}") from None


def array(group: Any, name: str, kind: str, shape: tuple[int, ...] | None = None) -> Array:
    """Read a whole dataset; `ValueError` unless it has the given kind of dtype and the given shape.

    Args:
        group: which holds it.
        name: of the dataset.
        kind: dtype kinds that it may have, such as ``"iu"``.
        shape: that it must have; None for any of two dimensions that a slide can have.
    """
    found = group[name]
    if found.dtype.kind not in kind:
        raise ValueError(f"{name}: expected dtype kind {kind}; got {found.dtype}")
    if shape is None:
        if len(found.shape) != 2 or not all(
            0 < n <= _LONGEST_BINS and n % PATCH_BINS == 0 for n in found.shape
        ):
            raise ValueError(
                f"{name}: expected rows and columns of whole patches; got {found.shape}"
            )
    elif found.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}; got {found.shape}")
    values: Array = found[:]
    return values


def patch_windows(group: Any, rows: int, cols: int) -> tuple[tuple[Window, ...], Int64Array]:
    """Windows of a slide's P patches in its arrays of rows × cols bins, and their blocks, (P,).

    Raises:
        ValueError: there is none, or one lies outside.
    """
    shape = group["patch_row0"].shape
    row = array(group, "patch_row0", "iu", shape).astype(np.int64) - int(group.attrs["row0"])
    col = array(group, "patch_col0", "iu", shape).astype(np.int64) - int(group.attrs["col0"])
    blocks = array(group, "patch_block", "iu", shape).astype(np.int64)
    inside = (row >= 0) & (row <= rows - PATCH_BINS) & (col >= 0) & (col <= cols - PATCH_BINS)
    if len(shape) != 1 or not len(row) or not inside.all():
        raise ValueError(f"expected patches inside of {rows} × {cols} bins, and a block for each")
    places = zip(row.tolist(), col.tolist(), strict=True)
    return tuple(Window(r, c, PATCH_BINS, PATCH_BINS) for r, c in places), blocks


def heading(patient: str, name: str) -> str:
    """Name of a slide in titles."""
    return f"patient {patient}" if name == patient else f"patient {patient}, slide {name}"

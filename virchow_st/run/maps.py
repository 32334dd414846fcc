"""The predicted and observed maps of a test slide, in one HDF5 file that figures read.

``maps/PATIENT.h5``: attributes ``format``, ``patient``, ``row0``, ``col0`` (array_row and array_col
of the first bin) and ``bin_um``; datasets ``rate`` (G, R, C) float16, expected UMIs per 2 µm bin in
every bin of an evaluated patch; ``counts`` (G, R, C) uint16, in tissue; ``scored_mask`` (R, C)
bool, the tissue bins of those patches; ``image`` (2R, 2C, 3) uint8 at 1 µm/px; ``gene_id``,
``gene_symbol``; and of the P evaluated patches, ``patch_row0`` and ``patch_col0`` (P,) int32,
array_row and array_col of their first bins, and ``patch_block`` (P,) int32, the spatial block of
each, numbered through all test slides.

The attribute ``store`` is the manifest of the slide's store without its list of genes, as JSON: the
homography, the image and the encoder with its licence, for what leaves the run by ``vst export``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.run.panel import Panel
from virchow_st.runtime.atomic import written_whole
from virchow_st.runtime.hdf5 import HELD, Hdf5Output, is_held_by_another, written_hdf5
from virchow_st.store.format import PatchInfo
from virchow_st.store.reader import Store
from virchow_st.types import (
    BIN_UM,
    PATCH_BINS,
    STORED_IMAGE_PX,
    Array,
    BoolArray,
    Float32Array,
    Int64Array,
    UInt8Array,
)

FORMAT = "virchow_st.maps/1"
_AGAIN = "run `vst evaluate` again"
_IMAGE_PX_PER_BIN = STORED_IMAGE_PX // PATCH_BINS
_MOST_COUNTS = np.iinfo(np.uint16).max


class SlideMaps:
    """Maps of one slide, patch by patch; made by `write_maps`."""

    def __init__(
        self,
        output: Hdf5Output,
        store: Store,
        panel: Panel,
        infos: Sequence[PatchInfo],
        blocks: Int64Array,
    ) -> None:
        self.row0 = min(info.row0 for info in infos)
        self.col0 = min(info.col0 for info in infos)
        rows = max(info.row0 for info in infos) + PATCH_BINS - self.row0
        cols = max(info.col0 for info in infos) + PATCH_BINS - self.col0
        self._output = output
        self._file = file = output.file
        file.attrs.update(
            format=FORMAT, patient=store.patient, row0=self.row0, col0=self.col0, bin_um=BIN_UM,
            store=json.dumps({k: v for k, v in store.manifest.items() if k != "genes"}),
        )  # fmt: skip
        genes = {"shape": (len(panel), rows, cols), "chunks": (1, PATCH_BINS, PATCH_BINS)}
        packed: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        file.create_dataset("rate", dtype="f2", **genes, **packed)
        file.create_dataset("counts", dtype="u2", **genes, **packed)
        file.create_dataset("scored_mask", (rows, cols), "?", **packed)
        side = _IMAGE_PX_PER_BIN
        file.create_dataset(
            "image", (side * rows, side * cols, 3), "u1", fillvalue=255, chunks=(256, 256, 3),
            **packed,
        )  # fmt: skip
        file["gene_id"] = list(panel.ids)
        file["gene_symbol"] = list(panel.symbols)
        file["patch_row0"] = np.array([info.row0 for info in infos], np.int32)
        file["patch_col0"] = np.array([info.col0 for info in infos], np.int32)
        file["patch_block"] = np.asarray(blocks, np.int32)

    def write(
        self,
        info: PatchInfo,
        rate: Float32Array,
        counts: Array,
        tissue_mask: BoolArray,
        image: UInt8Array,
    ) -> None:
        """Put one patch in its place; (G, 128, 128) twice, (128, 128) and (256, 256, 3)."""
        rows, cols = self._place(info)
        self._file["rate"][:, rows, cols] = rate
        self._file["counts"][:, rows, cols] = np.minimum(counts, _MOST_COUNTS) * tissue_mask
        self._file["scored_mask"][rows, cols] = tissue_mask
        side = _IMAGE_PX_PER_BIN
        self._file["image"][
            side * rows.start : side * rows.stop, side * cols.start : side * cols.stop
        ] = image
        self._output.check()

    def read_rate(self, info: PatchInfo) -> Float32Array:
        """Rates of one patch as they were written, (G, 128, 128) float32."""
        rows, cols = self._place(info)
        return self._file["rate"][:, rows, cols].astype(np.float32)

    def _place(self, info: PatchInfo) -> tuple[slice, slice]:
        row, col = info.row0 - self.row0, info.col0 - self.col0
        return slice(row, row + PATCH_BINS), slice(col, col + PATCH_BINS)


@contextmanager
def write_maps(
    path: Path, store: Store, panel: Panel, infos: Sequence[PatchInfo], blocks: Int64Array
) -> Iterator[SlideMaps]:
    """Write the maps of a store's slide; the file appears under its name when it is whole.

    Args:
        path: of the file.
        store: of the slide.
        panel: the genes.
        infos: the patches that will be written.
        blocks: (P,) the spatial block of each.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as aside, written_hdf5(aside) as output:
        yield SlideMaps(output, store, panel, infos, blocks)


class SavedMaps:
    """Maps of one slide, read from their file a block at a time; made by `read_maps`.

    Attributes:
        path: the file.
        row0, col0: array_row and array_col of the first bin.
        panel: the genes.
        manifest: of the slide's store, without its genes.
        scored_mask: (R, C) bool, tissue bins of the evaluated patches.
        written: (R, C) bool, all bins of those patches.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self._file = file
        self.row0, self.col0 = int(file.attrs["row0"]), int(file.attrs["col0"])
        if "store" not in file.attrs:
            raise ValueError("no attribute store: an older version wrote it")
        self.manifest: dict[str, Any] = json.loads(file.attrs["store"])
        ids, symbols = (file[name].asstr()[:] for name in ("gene_id", "gene_symbol"))
        self.panel = Panel(tuple(map(str, ids)), tuple(map(str, symbols)))
        self.scored_mask: BoolArray = file["scored_mask"][:]
        rows, cols = self.scored_mask.shape
        # Maps begin with a patch and patches are side by side; none is without tissue.
        squares = (rows // PATCH_BINS, PATCH_BINS, cols // PATCH_BINS, PATCH_BINS)
        patches = self.scored_mask.reshape(squares).any(axis=(1, 3))
        self.written: BoolArray = patches.repeat(PATCH_BINS, 0).repeat(PATCH_BINS, 1)

    def read(self, name: str, rows: slice, cols: slice, genes: Int64Array) -> Float32Array:
        """``rate`` or ``counts`` of some genes in a block, (G, h, w); NaN outside patches."""
        with _reading(self.path):
            values = np.stack([self._file[name][g, rows, cols] for g in genes]).astype(np.float32)
        values[:, ~self.written[rows, cols]] = np.nan
        return values

    def read_image(self, rows: slice) -> UInt8Array:
        """H&E of some rows of bins over the whole width, (2h, 2C, 3) uint8."""
        side = _IMAGE_PX_PER_BIN
        with _reading(self.path):
            image: UInt8Array = self._file["image"][side * rows.start : side * rows.stop]
        return image


@contextmanager
def read_maps(path: Path) -> Iterator[SavedMaps]:
    """Open what `write_maps` wrote.

    Raises:
        ConfigError: missing, damaged, or of another version.
    """
    with _reading(path):
        file = h5py.File(path, "r")
    with file:
        if (actual := file.attrs.get("format")) != FORMAT:
            raise ConfigError(f"{path}: expected format {FORMAT!r}; got {actual!r}; {_AGAIN}")
        try:
            with _reading(path):
                maps = SavedMaps(path, file)
        except (KeyError, ValueError) as e:
            raise ConfigError(f"{path}: incomplete ({e}); {_AGAIN}") from None
        yield maps


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file and the remedy in what HDF5 raises; not around what a caller writes."""
    try:
        yield
    except OSError as e:
        if is_held_by_another(e):
            raise ConfigError(f"{path}: {HELD}") from None
        raise ConfigError(f"{path}: cannot be read as HDF5 ({e}); {_AGAIN}") from None

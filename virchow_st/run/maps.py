"""Predicted and observed maps of a test slide, in one HDF5 file that figures and exports read.

``maps/PATIENT.h5``: attributes ``format``, ``patient``, ``row0``, ``col0`` (array_row and array_col
of the first bin) and ``bin_um``; datasets ``rate`` (G, R, C) float16, expected UMIs per 2 µm bin in
every bin of an evaluated patch, NaN where it is left out (`virchow_st.run.rates`); ``counts`` (G,
R, C) uint16, UMIs in tissue, or uint32 if a count does not fit; ``scored_mask`` (R, C) bool, the
tissue bins of those patches that are not left out; ``image`` (2R, 2C, 3) uint8 at 1 µm/px;
``gene_id``, ``gene_symbol``; and of the P evaluated patches, ``patch_row0`` and ``patch_col0`` (P,)
int32, array_row and array_col of their first bins, and ``patch_block`` (P,) int32, the spatial
block of each, numbered through all test slides.

The attribute ``name`` is the name of the slide, if it differs from the file's name. The attribute
``store`` is the manifest of the slide's store without its list of genes, as JSON; ``vst export``
takes the homography, the image and the encoder with its licence from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.run.hdf5 import AGAIN, Window, array, heading, naming_file, open_hdf5, patch_windows
from virchow_st.run.panel import Gene, Panel
from virchow_st.run.rates import check_rates, exact_float32, left_out
from virchow_st.runtime.atomic import written_whole
from virchow_st.runtime.hdf5 import Hdf5Output, written_hdf5
from virchow_st.schema import parse_json
from virchow_st.store.manifest import check_manifest
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

if TYPE_CHECKING:
    from virchow_st.store.format import PatchInfo
    from virchow_st.store.reader import Store

FORMAT = "virchow_st.maps/1"
MAPS = "maps"
"""Folder of a run's maps, a file for each test slide."""
_IMAGE_PX_PER_BIN = STORED_IMAGE_PX // PATCH_BINS


class SlideMaps:
    """Writes the maps of one slide patch by patch; made by `write_maps`."""

    def __init__(
        self,
        output: Hdf5Output,
        store: Store,
        panel: Panel,
        infos: Sequence[PatchInfo],
        blocks: Int64Array,
        name: str,
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
        if name:
            file.attrs["name"] = name
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
        """Write one patch: rate and counts (G, 128, 128), mask (128, 128) and image (256, 256, 3).

        Bins whose rates are NaN are not scored.
        """
        rows, cols = self._place(info)
        self._file["rate"][:, rows, cols] = rate
        observed = np.where(tissue_mask, counts, 0)
        if observed.max(initial=0) > np.iinfo(self._file["counts"].dtype).max:
            self._widen_counts()
        self._file["counts"][:, rows, cols] = observed
        self._file["scored_mask"][rows, cols] = tissue_mask & ~left_out(rate)
        side = _IMAGE_PX_PER_BIN
        self._file["image"][
            side * rows.start : side * rows.stop, side * cols.start : side * cols.stop
        ] = image
        self._output.check()

    def _widen_counts(self) -> None:
        """Hold counts as uint32 from now on: there is one that uint16 does not hold."""
        before = self._file["counts"]
        wider = self._file.create_dataset(
            "wider", before.shape, "u4", chunks=before.chunks, compression=before.compression,
            compression_opts=before.compression_opts, shuffle=before.shuffle,
        )  # fmt: skip
        for gene in range(before.shape[0]):
            wider[gene] = before[gene]
        del self._file["counts"]
        self._file.move("wider", "counts")

    def read_rate(self, info: PatchInfo) -> Float32Array:
        """Read the rates of one patch as they were written, (G, 128, 128) float32."""
        rows, cols = self._place(info)
        return self._file["rate"][:, rows, cols].astype(np.float32)

    def _place(self, info: PatchInfo) -> tuple[slice, slice]:
        row, col = info.row0 - self.row0, info.col0 - self.col0
        return slice(row, row + PATCH_BINS), slice(col, col + PATCH_BINS)


@contextmanager
def write_maps(
    path: Path,
    store: Store,
    panel: Panel,
    infos: Sequence[PatchInfo],
    blocks: Int64Array,
    name: str = "",
) -> Iterator[SlideMaps]:
    """Write the maps of a store's slide; the file appears under its name when complete.

    Args:
        path: of the file.
        store: of the slide.
        panel: the genes.
        infos: the patches that will be written.
        blocks: (P,) the spatial block of each.
        name: what the slide is called, where that is not the file's name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as aside, written_hdf5(aside) as output:
        yield SlideMaps(output, store, panel, infos, blocks, "" if name == path.stem else name)


@dataclass(frozen=True, eq=False)
class SlideResult:
    """One test slide, open for reading; arrays are in bin orientation (row down = array_row up).

    Attributes:
        path: of the file.
        name: of the slide: the patient, with a number where a patient has several.
        patient: whose slide it is.
        row0, col0: array_row and array_col of the first bin.
        panel: the genes.
        scored_mask: (R, C) bool, True for tissue bins of evaluated patches that are not left out.
        patches: (P,) where the evaluated patches lie in the arrays.
        blocks: (P,) int64, their spatial blocks, numbered through all test slides.
    """

    path: Path
    name: str
    patient: str
    row0: int
    col0: int
    panel: Panel
    scored_mask: BoolArray
    patches: tuple[Window, ...]
    blocks: Int64Array
    _file: Any

    @property
    def file_name(self) -> str:
        """Name of the slide in names of figure files."""
        return self.path.stem

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The genes of the panel."""
        return self.panel.genes

    @property
    def heading(self) -> str:
        """Name of the slide in titles."""
        return heading(self.patient, self.name)

    @property
    def whole(self) -> Window:
        """The whole slide as a window."""
        return Window(0, 0, *self.scored_mask.shape)

    @cached_property
    def image(self) -> UInt8Array:
        """(2R, 2C, 3) uint8 RGB at 1 µm/px."""
        return self.read_image(slice(0, self.scored_mask.shape[0]))

    @cached_property
    def written(self) -> BoolArray:
        """(R, C) bool, all bins of the evaluated patches."""
        mask = np.zeros(self.scored_mask.shape, bool)
        for p in self.patches:
            mask[p.row : p.row + p.rows, p.col : p.col + p.cols] = True
        return mask

    @cached_property
    def _unscored(self) -> BoolArray:
        """(R, C) bool, bins of evaluated patches that are glass or left out."""
        return self.written & ~self.scored_mask

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the slide's store, without its genes; `ConfigError` where there is none.

        Files of older versions have no manifest.
        """
        with naming_file(self.path):
            if "store" not in self._file.attrs:
                raise ValueError("no attribute store: an older version wrote it")
            content = parse_json(str(self._file.attrs["store"]))
            check_manifest(content, with_genes=False)
        return cast("dict[str, Any]", content)

    def layers(self, gene: Gene) -> tuple[Float32Array, Array]:
        """Rate float32 and counts uint16 or uint32, both (R, C), per 2 µm bin, of one gene.

        The rate is 0 in bins that are left out, which are not among the scored ones.
        """
        if gene.id not in self.panel.ids:
            raise ConfigError(f"{self.path}: gene {gene.id} of per_gene.csv is not in it; {AGAIN}")
        g = self.panel.ids.index(gene.id)
        with naming_file(self.path):
            rate, counts = self._file["rate"][g].astype(np.float32), self._file["counts"][g]
        rate[self._unscored & np.isnan(rate)] = 0
        check_rates(rate[None], [gene.symbol], str(self.path), AGAIN)
        return rate, counts

    def read(self, name: str, rows: slice, cols: slice, genes: Int64Array) -> Float32Array:
        """``rate`` or ``counts`` of some genes in a block, (G, h, w) float32; NaN outside patches.

        Rates are NaN in bins left out too.
        Raises `ConfigError` for rates that are NaN elsewhere or infinite, and for counts that
        float32 cannot hold.
        """
        with naming_file(self.path):
            read = np.stack([self._file[name][g, rows, cols] for g in genes])
        if name == "rate":
            symbols = [self.panel.symbols[g] for g in genes]
            known = np.where(self._unscored[rows, cols] & np.isnan(read), 0, read)
            check_rates(known.astype(np.float32), symbols, str(self.path), AGAIN)
        values = exact_float32(read, str(self.path)) if name == "counts" else read
        values = values.astype(np.float32)
        values[:, ~self.written[rows, cols]] = np.nan
        return values

    def read_image(self, rows: slice) -> UInt8Array:
        """H&E of some rows of bins over the whole width, (2h, 2C, 3) uint8."""
        side = _IMAGE_PX_PER_BIN
        with naming_file(self.path):
            image: UInt8Array = self._file["image"][side * rows.start : side * rows.stop]
        return image


def find_maps(run: Path) -> list[Path]:
    """The maps files of a run in order of their names; `ConfigError` if there is none."""
    paths = sorted((run / MAPS).glob("*.h5"))
    if not paths:
        raise ConfigError(f"{run / MAPS}: holds no .h5 file; run `vst evaluate {run}` first")
    return paths


@contextmanager
def open_maps(path: Path) -> Iterator[SlideResult]:
    """Open a file written by `write_maps`; masks and patches are read now, genes and image later.

    Raises:
        ConfigError: missing, damaged, or of another version.
    """
    with open_hdf5(path, FORMAT) as file:
        with naming_file(path):
            slide = _slide_result(path, file)
        yield slide


def _slide_result(path: Path, file: Any) -> SlideResult:
    mask = array(file, "scored_mask", "b")
    rows, cols = mask.shape
    ids, symbols = (tuple(map(str, file[name].asstr()[:])) for name in ("gene_id", "gene_symbol"))
    if len(ids) != len(symbols) or len(set(ids)) < len(ids):
        raise ValueError("gene_id: expected every gene once, and a symbol for each")
    side = _IMAGE_PX_PER_BIN
    expected = {
        "rate": ((len(ids), rows, cols), "f"),
        "counts": ((len(ids), rows, cols), "u"),
        "image": ((side * rows, side * cols, 3), "u"),
    }
    for name, (shape, kind) in expected.items():
        if file[name].shape != shape or file[name].dtype.kind != kind:
            raise ValueError(
                f"{name}: expected {shape} of kind {kind}; got {file[name].shape}, "
                f"{file[name].dtype}"
            )
    patches, blocks = patch_windows(file, rows, cols)
    patient = str(file.attrs["patient"])
    return SlideResult(
        path=path,
        name=str(file.attrs.get("name", path.stem)),
        patient=patient,
        row0=int(file.attrs["row0"]),
        col0=int(file.attrs["col0"]),
        panel=Panel(ids, symbols),
        scored_mask=mask,
        patches=patches,
        blocks=blocks,
        _file=file,
    )

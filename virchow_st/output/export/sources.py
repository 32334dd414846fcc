"""Sources of an export, read block by block: the maps of an evaluated run, or a store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash
from scipy import sparse

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError, StoreError
from virchow_st.kernels.pooling import sum_pool
from virchow_st.run.maps import SlideResult, find_maps, open_maps
from virchow_st.run.panel import Panel
from virchow_st.run.rates import exact_float32
from virchow_st.run.results import read_metrics
from virchow_st.run.state import check_run
from virchow_st.settings import from_toml, to_toml
from virchow_st.slide.geometry import Homography
from virchow_st.store.format import SparseCounts
from virchow_st.store.genes import find_genes, split_names
from virchow_st.store.manifest import JOB, MANIFEST
from virchow_st.store.reader import Store, open_store
from virchow_st.types import (
    BLOCK_BINS,
    CELL_BINS,
    PATCH_BINS,
    STORED_IMAGE_PX,
    BoolArray,
    Float32Array,
    Int64Array,
    UInt8Array,
)

PX_PER_BIN = STORED_IMAGE_PX // PATCH_BINS
_DATASETS = {"rates": "rate", "counts": "counts"}  # of the maps
_CELLS = PATCH_BINS // CELL_BINS  # 8 µm bins along a patch


@dataclass(frozen=True, eq=False)
class Cells:
    """8 µm bins with tissue, n of them.

    Attributes:
        row, col: (n,) position on the 8 µm grid, counted from the source's first bin.
        values: (n, G) float32 by name; SciPy sparse if the source is a store.
        tissue_bins: (n,) number of 2 µm bins in each that are tissue, 1 to 16.
    """

    row: Int64Array
    col: Int64Array
    values: dict[str, Any]
    tissue_bins: UInt8Array


class Source(Protocol):
    """One slide on its bin lattice: (R, C) bins, of which the first is (row0, col0)."""

    @property
    def name(self) -> str:
        """Name of the slide."""

    @property
    def manifest(self) -> dict[str, Any]:
        """Manifest of the slide's store, without its genes."""

    @property
    def row0(self) -> int:
        """array_row of the first bin."""

    @property
    def col0(self) -> int:
        """array_col of the first bin."""

    @property
    def panel(self) -> Panel:
        """Genes that are exported as images."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Available maps: ``rates`` and ``counts``, or only ``counts``."""

    @property
    def tissue_mask(self) -> BoolArray:
        """(R, C) bool, tissue bins of the patches."""

    def read(self, kind: str, rows: slice, cols: slice) -> Float32Array:
        """Values (G, h, w) of a block, NaN outside patches; the slices lie within (R, C)."""

    def read_image(self, rows: slice) -> UInt8Array:
        """H&E of some rows over the full width, (2h, 2C, 3) uint8, white outside patches."""

    def cells(self, every_gene: bool = False) -> tuple[Panel, Cells]:
        """The genes and the table of 8 µm bins; genes are those with images, or every gene."""

    def about(self) -> dict[str, Any]:
        """Provenance beyond the manifest."""


def homography(source: Source) -> Homography:
    """Homography from bins to full-resolution px; `StoreError` if the manifest has none."""
    try:
        return Homography(np.array(source.manifest["homography"], np.float64))
    except (ValueError, TypeError) as e:
        raise StoreError(f"{source.name}: homography: {e}; extract the slide again") from None


def blocks(source: Source) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the blocks of a source, row by row."""
    n_rows, n_cols = source.tissue_mask.shape
    for row in range(0, n_rows, BLOCK_BINS):
        for col in range(0, n_cols, BLOCK_BINS):
            yield (
                slice(row, min(row + BLOCK_BINS, n_rows)),
                slice(col, min(col + BLOCK_BINS, n_cols)),
            )


class RunSource:
    """Predicted rates and observed counts of a run's test slide, from its maps."""

    kinds = ("rates", "counts")

    def __init__(self, run: Path, maps: SlideResult, genes: str, keep_paths: bool) -> None:
        self._run, self._maps, self._keep_paths = run, maps, keep_paths
        self.name = maps.name
        self.manifest = maps.manifest
        self.row0, self.col0 = maps.row0, maps.col0
        self.tissue_mask = maps.scored_mask
        every = maps.panel
        self._genes = np.arange(len(every))
        if genes:
            self._genes = find_genes(split_names(genes), every.ids, every.symbols, str(run))
        self.panel = _part_of(every, self._genes)

    @property
    def file_name(self) -> str:
        """What the run's files of the slide are called."""
        return self._maps.file_name

    @property
    def written(self) -> BoolArray:
        """(R, C) bool, all bins of the evaluated patches."""
        return self._maps.written

    def read(self, kind: str, rows: slice, cols: slice) -> Float32Array:
        """See `Source`."""
        return self._maps.read(_DATASETS[kind], rows, cols, self._genes)

    def read_image(self, rows: slice) -> UInt8Array:
        """See `Source`."""
        return self._maps.read_image(rows)

    def cells(self, every_gene: bool = False) -> tuple[Panel, Cells]:
        """The 8 µm bins that ``vst evaluate`` scores: all their 2 µm bins are tissue."""
        every = self._maps.panel
        genes = np.arange(len(every)) if every_gene else self._genes
        whole = _tissue_bins(self.tissue_mask) == CELL_BINS**2
        values: dict[str, list[Float32Array]] = {kind: [] for kind in self.kinds}
        row, col = [], []
        for rows, cols in blocks(self):
            top, left = rows.start // CELL_BINS, cols.start // CELL_BINS
            r, c = np.nonzero(whole[top : rows.stop // CELL_BINS, left : cols.stop // CELL_BINS])
            row.append(top + r)
            col.append(left + c)
            for kind in self.kinds:
                read = self._maps.read(_DATASETS[kind], rows, cols, genes)
                pooled = sum_pool(read, CELL_BINS)[:, r, c]
                if kind == "counts":
                    exact_float32(pooled, str(self._run))
                values[kind].append(pooled.T.astype(np.float32))
        joined = {kind: np.concatenate(parts) for kind, parts in values.items()}
        n_bins = np.full(len(joined["rates"]), CELL_BINS**2, np.uint8)
        return _part_of(every, genes), Cells(
            np.concatenate(row), np.concatenate(col), joined, n_bins
        )

    def about(self) -> dict[str, Any]:
        """See `Source`."""
        metrics = read_metrics(self._run)
        config = from_toml(TrainConfig, self._run / "config.toml")
        return {
            "source": "run",
            "run": {
                "path": _place(self._run, self._keep_paths),
                "config": xxhash.xxh64(to_toml(config).encode()).hexdigest(),
                **{name: metrics[name] for name in ("decoder", "loss", "epoch", "test_patients")},
            },
        }


class StoreSource:
    """Counts and image of a store."""

    kinds = ("counts",)

    def __init__(self, store: Store, genes: str, keep_paths: bool = False) -> None:
        self._store, self._keep_paths = store, keep_paths
        self.name = str(store.manifest["slide"])
        self.manifest = {name: of for name, of in store.manifest.items() if name != "genes"}
        infos = store.patch_table
        if not infos:
            raise ConfigError(f"{store.path}: expected patches to export; found none")
        self.row0 = min(info.row0 for info in infos)
        self.col0 = min(info.col0 for info in infos)
        self._shape = (
            max(info.row0 for info in infos) + PATCH_BINS - self.row0,
            max(info.col0 for info in infos) + PATCH_BINS - self.col0,
        )
        self._at = {
            (info.row0 - self.row0, info.col0 - self.col0): i for i, info in enumerate(infos)
        }
        self._every = Panel(store.genes.ids, store.genes.symbols)
        self._genes = np.array([], np.int64)
        if genes:
            every = self._every
            self._genes = find_genes(split_names(genes), every.ids, every.symbols, str(store.path))
        self.panel = _part_of(self._every, self._genes)

    @cached_property
    def tissue_mask(self) -> BoolArray:
        """See `Source`."""
        mask = np.zeros(self._shape, bool)
        for (row, col), i in self._at.items():
            mask[_square(row), _square(col)] = self._store[i].tissue_mask
        return mask

    def read(self, kind: str, rows: slice, cols: slice) -> Float32Array:
        """See `Source`; blocks of whole patches."""
        assert kind == "counts"
        shape = rows.stop - rows.start, cols.stop - cols.start
        values = np.full((len(self._genes), *shape), np.nan, np.float32)
        for row in range(rows.start, rows.stop, PATCH_BINS):
            for col in range(cols.start, cols.stop, PATCH_BINS):
                if (i := self._at.get((row, col))) is not None:
                    at = _square(row - rows.start), _square(col - cols.start)
                    counts = self._store[i].dense_counts(self._genes)
                    values[:, *at] = exact_float32(counts, str(self._store.path))
        return values

    def read_image(self, rows: slice) -> UInt8Array:
        """See `Source`; rows of whole patches."""
        side = STORED_IMAGE_PX
        height = PX_PER_BIN * (rows.stop - rows.start)
        image = np.full((height, PX_PER_BIN * self._shape[1], 3), 255, np.uint8)
        for (row, col), i in self._at.items():
            if rows.start <= row < rows.stop:
                y, x = PX_PER_BIN * (row - rows.start), PX_PER_BIN * col
                image[y : y + side, x : x + side] = self._store[i].image
        return image

    def cells(self, every_gene: bool = False) -> tuple[Panel, Cells]:
        """All 8 µm bins with tissue."""
        n_genes = len(self._every)
        chosen = np.arange(n_genes) if every_gene else self._genes
        tissue_bins = _tissue_bins(self.tissue_mask)
        counts, row, col = [], [], []
        for (row0, col0), i in self._at.items():
            top, left = row0 // CELL_BINS, col0 // CELL_BINS
            r, c = np.nonzero(tissue_bins[top : top + _CELLS, left : left + _CELLS])
            of_patch = _pooled_counts(self._store[i].sparse_counts, n_genes)
            exact_float32(of_patch.data, str(self._store.path))
            counts.append(of_patch[r * _CELLS + c][:, chosen])
            row.append(top + r)
            col.append(left + c)
        rows, cols = np.concatenate(row), np.concatenate(col)
        values = {"counts": sparse.vstack(counts, format="csr", dtype=np.float32)}
        return _part_of(self._every, chosen), Cells(rows, cols, values, tissue_bins[rows, cols])

    def about(self) -> dict[str, Any]:
        """See `Source`."""
        return {"source": "store", "store": _place(self._store.path, self._keep_paths)}


@contextmanager
def open_source(
    path: Path, genes: str = "", slide: str = "", keep_paths: bool = False
) -> Iterator[Source]:
    """Open a store, or the maps of an evaluated run's test slide.

    Args:
        path: of the store or run.
        genes: names with commas or a file of them; empty for a run's panel, or none of a store.
        slide: which of a run's test slides; empty where there is one.
        keep_paths: say where it was, not only what it is called.

    Raises:
        ConfigError, StoreError: the path is neither a store nor a run; it is unfinished, not
            evaluated or damaged; or it does not contain a gene or the slide.
    """
    if (path / MANIFEST).is_file() or (path / JOB).is_file():
        if slide:
            raise ConfigError(f"slide: {path} is a store, of one slide; leave out --slide")
        yield StoreSource(open_store(path), genes, keep_paths)
        return
    folds = sorted(fold.name for fold in path.glob("fold-*"))
    if folds or not (path / "config.toml").is_file():
        actual = f"folds, {', '.join(folds)}; give one" if folds else "neither; check the path"
        raise ConfigError(f"{path}: expected a store, or a run of `vst train`; got {actual}")
    check_run(path)
    with open_maps(_maps_of(path, slide)) as maps:
        yield RunSource(path, maps, genes, keep_paths)


def _maps_of(run: Path, slide: str) -> Path:
    """The maps of a run's test slide; `ConfigError` where there is none or more than one."""
    found: dict[str, Path] = {}
    for path in find_maps(run):
        with open_maps(path) as maps:
            found[maps.name] = path
    if not slide and len(found) == 1:
        return next(iter(found.values()))
    if slide not in found:
        names = ", ".join(found)
        raise ConfigError(f"slide: expected one of {names} of {run}; got {slide or 'none'}")
    return found[slide]


def _place(path: Path, keep_paths: bool) -> str:
    """The origin that an output states: the name alone, since outputs are made to be shared."""
    return str(path) if keep_paths else path.resolve().name


def _part_of(panel: Panel, genes: Int64Array) -> Panel:
    ids, symbols = (tuple(names[g] for g in genes) for names in (panel.ids, panel.symbols))
    return Panel(ids, symbols)


def _square(start: int) -> slice:
    return slice(start, start + PATCH_BINS)


def _tissue_bins(mask: BoolArray) -> UInt8Array:
    """Tissue bins in each 8 µm bin, (R / 4, C / 4)."""
    rows, cols = (n // CELL_BINS for n in mask.shape)
    return mask.reshape(rows, CELL_BINS, cols, CELL_BINS).sum(axis=(1, 3), dtype=np.uint8)


def _pooled_counts(stored: SparseCounts, n_genes: int) -> sparse.csr_matrix:
    """A patch's counts by 8 µm bin, row-major, and gene: (1024, G) float64."""
    gene = np.repeat(stored.genes, np.diff(stored.indptr)).astype(np.int32)
    row, col = np.divmod(stored.positions.astype(np.int32), PATCH_BINS)
    cell = row // CELL_BINS * _CELLS + col // CELL_BINS
    counts = stored.counts.astype(np.float64)
    # Entries of one bin and gene are added up.
    return sparse.csr_matrix((counts, (cell, gene)), shape=(_CELLS**2, n_genes))

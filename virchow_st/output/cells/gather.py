"""Reads the cells of a source, and sums its rates and counts over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from scipy import sparse

from virchow_st.config import CellsConfig
from virchow_st.errors import ConfigError
from virchow_st.field.interval import RateErrors
from virchow_st.output.cells.sources import CellSource
from virchow_st.output.cells.sums import CountSums, MapSums, count_sums, map_sums
from virchow_st.output.export.sources import blocks
from virchow_st.run.panel import Panel
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.slide.cells.assign import by_centres, expanded
from virchow_st.slide.cells.cell_map import CellMap, bin_outlines
from virchow_st.slide.cells.geojson import CELLS, NUCLEI
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.cells.outlines import Outlines
from virchow_st.slide.cells.read import AREA, read_cells
from virchow_st.slide.cells.segment import segment_cells
from virchow_st.slide.cells.segmenters import is_segmenter, segmenter_names
from virchow_st.store.genes import find_genes, split_names
from virchow_st.types import Array, Float32Array, Float64Array, Int64Array


@dataclass(frozen=True, eq=False)
class CellData:
    """Cells of a source, and what was summed over them.

    Attributes:
        cells: on the lattice of the rates, or of the counts where there are none.
        panel: the G genes of the table.
        expected: sums of the maps, or None without rates.
        loadings: (G, K) of the maps, or None where the maps are the genes.
        observed: counts, whose columns are the G genes, or None.
        measured: (G,) bool, genes that the store has; None without counts.
        counted: (n,) share of each cell's bins with UMIs, or None.
        errors: of the genes' expected rates, or None where the field does not know them.
        segmenter: package and version of what found the cells; empty of cells from a file.
    """

    cells: CellMap
    panel: Panel
    expected: MapSums | None
    loadings: Float32Array | None
    observed: CountSums | None
    measured: Array | None
    counted: Float64Array | None
    errors: RateErrors | None = None
    segmenter: str = ""


def summed(
    source: CellSource,
    path: Path,
    config: CellsConfig,
    progress: Progress = SILENT,
    image: Path | None = None,
) -> CellData:
    """Read cells, and sum rates and counts over them.

    Args:
        source: see `virchow_st.output.cells.sources.open_cell_source`.
        path: of the cells, or the name of a segmenter.
        config: options.
        progress: receives notes and step counts.
        image: the slide's image, for a segmenter.
    """
    every = source.genes
    index = np.arange(len(every))
    if config.genes:
        names = split_names(config.genes)
        index = find_genes(names, every.ids, every.symbols, source.name)
    panel = Panel(tuple(every.ids[g] for g in index), tuple(every.symbols[g] for g in index))

    package = ""
    if is_segmenter(str(path)) and not path.exists():
        cells, package = _found(path, image, source.lattice, config, progress)
    elif not path.exists() and not path.suffix:
        raise ConfigError(
            f"--cells {path}: expected a file or folder of cells, or a segmenter; found neither; "
            f"installed segmenters: {', '.join(segmenter_names())}"
        )
    elif image is not None:
        raise ConfigError(
            f"image: is for segmenters ({', '.join(segmenter_names())}); {path} is none; leave out "
            "--image"
        )
    else:
        cells = _cells(path, source.lattice, config)
    _tell(cells, path, config, progress)
    expected = None
    if source.has_rates:
        n_maps = len(index) if source.loadings is None else source.loadings.shape[1]
        expected = map_sums(source.rate_blocks(index), cells, n_maps)
    observed = measured = counted = None
    if source.store is not None and source.store_lattice is not None:
        place = {gene: i for i, gene in enumerate(source.store.genes.ids)}
        measured = np.array([gene in place for gene in panel.ids], bool)
        if not measured.any():
            raise ConfigError(
                f"{source.store.path}: expected the genes of the rates, by id; found none of them; "
                "give the store of this slide"
            )
        of_store = np.array([place[gene] for gene in panel.ids if gene in place], np.int64)
        same = cells.lattice is source.store_lattice or _is_same(
            cells.lattice, source.store_lattice
        )
        on_store = cells
        if not same and package:
            on_store = _moved(cells, source.store_lattice)
        elif not same:
            on_store = _cells(path, source.store_lattice, config)
        sums = count_sums(source.store, on_store, of_store, progress)
        observed = _aligned(sums, on_store, cells, measured)
        counted = _by_name(on_store.mean_of(sums.counted), on_store, cells)
        if not measured.all():
            progress.note(
                f"{int((~measured).sum()):,} genes were not measured on {source.name}: see "
                "var['measured']"
            )
    elif source.maps is not None:
        observed, counted = _of_maps(source, cells, index)
        measured = np.ones(len(index), bool)
    loadings = None if source.loadings is None else source.loadings[index]
    return CellData(
        cells, panel, expected, loadings, observed, measured, counted, source.errors(index), package
    )


def _found(
    name: Path, image: Path | None, lattice: Lattice, config: CellsConfig, progress: Progress
) -> tuple[CellMap, str]:
    """Cells by a segmenter, and its package with the version."""
    if image is None:
        raise ConfigError(
            f"--cells {name}: expected --image, the slide's full-resolution image, to segment; or "
            "give a file of cells"
        )
    if config.nuclei or config.mpp or config.weights == AREA:
        raise ConfigError(
            f"--cells {name}: a segmenter gives whole bins; leave out --nuclei, --mpp and --weights"
        )
    cells, package = segment_cells(str(name), image, lattice, progress)
    return (expanded(cells, config.expand_um) if config.expand_um else cells), package


def _moved(cells: CellMap, lattice: Lattice) -> CellMap:
    """The same cells on another lattice, by the outlines of their bins."""
    outlines = shapely.transform(bin_outlines(cells), cells.lattice.to_px)
    return by_centres(Outlines(Path(), outlines, cells.ids, cells.classes), lattice)


def _cells(path: Path, lattice: Lattice, config: CellsConfig) -> CellMap:
    return read_cells(
        path, lattice, want=NUCLEI if config.nuclei else CELLS, weights=config.weights,
        expand_um=config.expand_um, mpp=config.mpp,
    )  # fmt: skip


def _tell(cells: CellMap, path: Path, config: CellsConfig, progress: Progress) -> None:
    """Say what was found, and what was left out."""
    what = "nuclei" if config.nuclei else "cells"
    text = f"{path}: {len(cells):,} {what}, {np.median(cells.area_um2):.0f} µm² in the median"
    if cells.n_elsewhere:
        text += f"; {cells.n_elsewhere:,} have no bin on {cells.lattice.name} and are left out"
    progress.note(text)
    if cells.n_shared:
        rule = "divided among them" if config.weights == "area" else "given to the smallest"
        progress.note(f"{cells.n_shared:,} bins lie in several outlines and are {rule}")
    for reason, n in (cells.notes or {}).items():
        progress.note(f"{path}: passed over: {n:,} {reason}")


def _is_same(one: Lattice, other: Lattice) -> bool:
    return (
        (one.row0, one.col0, one.shape) == (other.row0, other.col0, other.shape)
        and np.allclose(one.homography.matrix, other.homography.matrix, rtol=1e-12, atol=0)
    )  # fmt: skip


def _by_name(values: Array, source: CellMap, target: CellMap) -> Array:
    """Values by cell of one map, in the order of another's cells; 0 where one is not there."""
    if source is target:
        return values
    at = _places(source, target)
    found = np.zeros(len(target), values.dtype)
    found[at >= 0] = values[at[at >= 0]]
    return found


def _places(source: CellMap, target: CellMap) -> Int64Array:
    """(n,) index in the source of each of the target's cells; −1 where it is not there."""
    number = {name: i for i, name in enumerate(source.ids)}
    return np.array([number.get(name, -1) for name in target.ids], np.int64)


def _aligned(sums: CountSums, source: CellMap, target: CellMap, measured: Array) -> CountSums:
    """Counts with a row for each of the target's cells and a column for each of its genes."""
    matrix = sums.of_cells
    if source is not target:
        at = _places(source, target)
        kept = np.flatnonzero(at >= 0)
        into = sparse.csr_matrix(
            (np.ones(len(kept), np.float32), (kept, at[kept])), (len(target), len(source))
        )
        matrix = into @ matrix
    if not measured.all():
        column = np.flatnonzero(measured)
        onto = sparse.csr_matrix(
            (np.ones(len(column), np.float32), (np.arange(len(column)), column)),
            (len(column), len(measured)),
        )
        matrix = matrix @ onto
    return CountSums(sparse.csr_matrix(matrix), sums.of_slide, sums.counted)


def _of_maps(
    source: CellSource, cells: CellMap, index: Int64Array
) -> tuple[CountSums, Float64Array]:
    """Counts of a run's panel, from its maps."""
    assert source.maps is not None
    maps = source.maps
    counted = np.zeros(cells.lattice.shape, bool)

    def read() -> Iterator[tuple[int, int, Array]]:
        for rows, cols in blocks(maps):
            counts = maps.read("counts", rows, cols)
            counted[rows, cols] = np.nan_to_num(counts).any(axis=0)
            yield rows.start, cols.start, counts[index]

    sums = map_sums(read(), cells, len(index))
    matrix = sparse.csr_matrix(sums.of_cells.astype(np.float32))
    return CountSums(matrix, float(sums.of_slide.sum()), counted), cells.mean_of(counted)

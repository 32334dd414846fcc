"""Reads cells or regions from any of the formats and puts them on a lattice: `read_cells`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import shapely

from virchow_st.errors import ConfigError, SlideError
from virchow_st.slide.cells.assign import by_area, by_centres, expanded
from virchow_st.slide.cells.cell_map import CellMap
from virchow_st.slide.cells.geojson import CELLS, NUCLEI, REGIONS, read_geojson
from virchow_st.slide.cells.label_image import read_label_image
from virchow_st.slide.cells.lattice import Lattice
from virchow_st.slide.cells.outlines import Outlines
from virchow_st.slide.cells.shapes_element import find_element, read_shapes
from virchow_st.slide.cells.space_ranger_cells import (
    MAPPINGS,
    OUTLINES,
    find_mappings,
    find_outlines,
    read_mappings,
)
from virchow_st.types import BoolArray, Float64Array

CENTRE, AREA = "centre", "area"
"""Rules by which bins belong to outlines."""
_JSON = (".geojson", ".json")
_TIFF = (".tif", ".tiff", ".btf")
_LEAST_ON_TISSUE = 0.5  # share of cells that must lie on the tissue
_FITS_AS_UM, _MISFITS_AS_PX = 0.9, 0.8
_TAKES = (
    "Space Ranger's outs or segmented_outputs, a .geojson, a label image (.tif, .zarr), or shapes "
    "of a SpatialData folder"
)


def read_cells(
    path: Path,
    lattice: Lattice,
    *,
    want: str = CELLS,
    weights: str = CENTRE,
    expand_um: float = 0.0,
    mpp: float = 0.0,
) -> CellMap:
    """Read cells or regions and find the bins of each.

    Args:
        path: Space Ranger 4's ``outs``, ``segmented_outputs`` or ``barcode_mappings.parquet``; a
            GeoJSON file in full-resolution pixels; a label image as TIFF or Zarr; or a SpatialData
            folder, or the shapes or labels in it.
        lattice: bins of the slide.
        want: ``"cells"``, ``"nuclei"`` or ``"regions"``, of sources that hold several.
        weights: ``"centre"``, a bin belongs to the cell that its centre lies in; or ``"area"``, by
            the share of its area, for which the source must have outlines.
        expand_um: how far cells grow where no other is nearer; see
            `virchow_st.slide.cells.assign.expanded`.
        mpp: µm per pixel of a label image; 0 to find out.

    Returns:
        Cells with at least one bin on the lattice, in the order of the source.

    Raises:
        ConfigError: options that do not go together or with the source.
        SlideError: the source is missing, empty, damaged, of another kind, or of another slide.

    Example:
        >>> cells = read_cells(Path("outs"), lattice)  # doctest: +SKIP
        >>> cells.ids[0], cells.n_bins[0], cells.labels.shape  # doctest: +SKIP
        ('cellid_000000001-1', 31.0, (3328, 3328))
    """
    if weights == AREA and expand_um:
        raise ConfigError(
            "expand_um: cells grow by whole bins, for which --weights area has no meaning; leave "
            "out one of them"
        )
    what = REGIONS if want == REGIONS else CELLS
    found = _read(path, lattice, want, mpp)
    if isinstance(found, Outlines):
        cells = (by_area if weights == AREA else by_centres)(found, lattice)
        _check_frame(found, cells, what)
    elif weights == AREA:
        raise ConfigError(
            f"weights: area needs outlines; {path} says which bins or pixels belong to a cell; "
            "leave it out, or give outlines"
        )
    else:
        cells = found
        _check_on_tissue(path, cells, what)
    return expanded(cells, expand_um) if expand_um else cells


def _read(path: Path, lattice: Lattice, want: str, mpp: float) -> Outlines | CellMap:
    """Read a source, by its name and content."""
    suffix = path.suffix.lower()
    if mpp and (suffix in _JSON or suffix == ".parquet"):
        raise ConfigError(f"mpp: {path} is no label image; its coordinates are taken as they are")
    if not path.exists():
        raise SlideError(f"{path}: not found; give {_TAKES}")
    if path.is_dir() and (element := find_element(path)) is not None:
        kind, place = element
        _only_cells(path, want)
        return read_shapes(place) if kind == "shapes" else read_label_image(place, lattice, mpp)
    if path.is_dir():
        return _read_folder(path, lattice, want)
    if suffix in _JSON:
        return read_geojson(path, want)
    if suffix == ".parquet":
        return read_mappings(path, lattice, want == NUCLEI)
    if suffix in _TIFF:
        _only_cells(path, want)
        return read_label_image(path, lattice, mpp)
    raise SlideError(
        f"{path}: expected cells; found a file {suffix or 'without extension'}; give {_TAKES}"
    )


def _read_folder(path: Path, lattice: Lattice, want: str) -> Outlines | CellMap:
    """Space Ranger's table of bins where it is there, else its outlines."""
    if want == REGIONS:
        raise ConfigError(f"{path}: expected a file of regions; give a .geojson")
    nuclei = want == NUCLEI
    if (mappings := find_mappings(path)) is not None:
        return read_mappings(mappings, lattice, nuclei)
    if (outlines := find_outlines(path, nuclei)) is not None:
        return read_geojson(outlines)
    raise SlideError(
        f"{path}: expected {MAPPINGS} or {OUTLINES[nuclei]}; found neither; run Space Ranger 4 "
        "with segmentation, or give cells of another program"
    )


def _only_cells(path: Path, want: str) -> None:
    if want == NUCLEI:
        raise ConfigError(
            f"nuclei: {path} holds one kind of outline; leave out --nuclei, which tells them apart "
            "in Space Ranger's and QuPath's files"
        )


# --- is it this slide? ----------------------------------------------------------------------------


def _check_on_tissue(path: Path, cells: CellMap, what: str) -> None:
    """Raise `SlideError` unless most cells (or regions) have a bin in tissue."""
    total = len(cells) + cells.n_elsewhere
    on_tissue = int((cells.mean_of(cells.lattice.tissue) > 0).sum()) if len(cells) else 0
    if on_tissue < _LEAST_ON_TISSUE * total:
        raise SlideError(
            f"{path}: expected {what} on the tissue of {cells.lattice.name}; "
            f"{total - on_tissue:,} of {total:,} lie off it; give the {what} of this slide, "
            "in its full-resolution pixels"
        )


def _check_frame(outlines: Outlines, cells: CellMap, what: str) -> None:
    """`_check_on_tissue`, and whether the outlines are in µm."""
    lattice = cells.lattice
    middles = shapely.get_coordinates(shapely.point_on_surface(outlines.polygons))
    as_px, as_um = (_on_tissue(xy, lattice) for xy in (middles, middles / lattice.mpp))
    if as_um >= _FITS_AS_UM and as_px < _MISFITS_AS_PX:
        raise SlideError(
            f"{outlines.path}: expected full-resolution pixels; as such {as_px:.0%} of the "
            f"outlines lie on the tissue of {lattice.name}, and {as_um:.0%} if they are in µm; "
            f"divide the coordinates by {lattice.mpp:.4g}"
        )
    _check_on_tissue(outlines.path, cells, what)


def _on_tissue(xy_px: Float64Array, lattice: Lattice) -> float:
    """Share of points in full-resolution px that lie in a tissue bin."""
    col, row = np.rint(lattice.to_bins(xy_px)).T
    rows, cols = lattice.shape
    inside: BoolArray = (row >= 0) & (row < rows) & (col >= 0) & (col < cols)
    at = row[inside].astype(np.int64), col[inside].astype(np.int64)
    return float(lattice.tissue[at].sum() / len(xy_px))

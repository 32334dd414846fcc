"""``vst cells``: writes cells as AnnData, SpatialData with outlines, or GeoJSON for QuPath."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
import zarr

from virchow_st.config import CellsConfig
from virchow_st.errors import ConfigError
from virchow_st.field.ngff import FULLRES, Folder
from virchow_st.field.write import TISSUE
from virchow_st.names import tree_key
from virchow_st.output.cells.gather import CellData, summed
from virchow_st.output.cells.qupath import check_genes, write_outlines
from virchow_st.output.cells.sources import CellSource, open_cell_source
from virchow_st.output.cells.table import provenance_of, to_anndata
from virchow_st.output.export.convert import from_zero
from virchow_st.output.export.field import copy_picture
from virchow_st.output.export.sources import StoreSource
from virchow_st.output.export.tables import check_format
from virchow_st.output.export.write import small_picture, write_picture
from virchow_st.runtime.atomic import check_absent, new_output
from virchow_st.runtime.hdf5 import written_hdf5
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.types import BIN_UM, Float64Array

if TYPE_CHECKING:
    from anndata import AnnData

CELLS, TABLE = "cells", "table"
"""Names of the shapes and of their table in the SpatialData folder."""
_H5AD, _ZARR, _GEOJSON = ".h5ad", ".zarr", ".geojson"


def write_cells(
    source: Path,
    cells: Path,
    out: Path,
    config: CellsConfig | None = None,
    store: Path | None = None,
    progress: Progress = SILENT,
    image: Path | None = None,
) -> tuple[Path, str]:
    """Write the table of `virchow_st.cell_table`, or outlines, completely or not at all.

    Args:
        source, cells, config, store, progress, image: see `virchow_st.cell_table`.
        out: ``NAME.h5ad``, an AnnData file; or ``NAME.zarr``, a SpatialData folder that holds the
            cells' outlines, the table and the H&E picture; or ``NAME.geojson``, outlines in
            full-resolution px with measurements for QuPath, see
            `virchow_st.output.cells.qupath.write_outlines`.

    Returns:
        ``out``, and a short description of its content.

    Raises:
        ConfigError, SlideError, StoreError, FieldError: see `virchow_st.cell_table`; or ``out`` is
            there already or has another ending.
    """
    config = config or CellsConfig()
    if out.suffix not in (_H5AD, _ZARR, _GEOJSON):
        raise ConfigError(
            f"{out}: expected a name that ends in {_H5AD}, {_ZARR} or {_GEOJSON}; give one"
        )
    check_absent(out)
    if out.suffix == _GEOJSON:
        check_genes(config)
        with open_cell_source(source, store, config.slide, config.keep_paths) as opened:
            data = summed(opened, cells, config, progress, image)
            about = provenance_of(opened, cells, config, data)
            with new_output(out) as aside:
                names = write_outlines(opened, data, config, about, aside / "result")
        return out, f"outlines of {len(data.cells):,} cells with {len(names)} measurements"
    check_format("spatialdata" if out.suffix == _ZARR else "h5ad", needs_anndata=True)
    with open_cell_source(source, store, config.slide, config.keep_paths) as opened:
        data = summed(opened, cells, config, progress, image)
        about = provenance_of(opened, cells, config, data)
        table = to_anndata(opened, data, about)
        with new_output(out) as aside:
            if out.suffix == _ZARR:
                _write_folder(opened, data, table, about, aside / "result")
            else:
                _write_file(opened, table, aside / "result")
    content = f"{table.n_obs:,} cells × {table.n_vars:,} genes"
    kinds = {"expected": "expected UMIs", "observed": "observed UMIs", "absent": ""}
    kinds["expected"] += " and their variance" if "variance" in table.layers else ""
    parts = [kinds[table.uns["X"]], "observed UMIs" if "observed" in table.layers else ""]
    if "factors" in table.obsm:
        parts.insert(0, f"{table.obsm['factors'].shape[1]} factors")
    if table.uns["X"] == "absent":
        progress.note(
            f"X is left out, {table.n_obs * table.n_vars * 4 / 1e9:.0f} GB: cell_rates(adata, "
            "gene) computes a gene, --genes writes some, obsm['factors'] is what to cluster on"
        )
    return out, f"{content}: {', '.join(filter(None, parts))}"


def _write_file(source: CellSource, table: AnnData, out: Path) -> None:
    from anndata.io import write_elem

    if (picture := _small_picture(source)) is not None:
        rgb, um_per_px = picture
        diameter = 2 * np.sqrt(table.obs["area_um2"].median() / np.pi)  # µm, as obsm["spatial"]
        table.uns["spatial"] = {
            tree_key(source.name): {
                "images": {"hires": rgb},
                "scalefactors": {
                    "tissue_hires_scalef": 1 / um_per_px,
                    "spot_diameter_fullres": float(diameter),
                },
            }
        }
    table.strings_to_categoricals()
    with written_hdf5(out) as output:
        write_elem(output.file, "/", table, dataset_kwargs={"compression": "gzip"})


def _small_picture(source: CellSource) -> Any:
    """H&E from (0, 0) µm on, and its µm per pixel; None where there is none."""
    if source.field is not None:
        found = source.field.picture()
        return None if found is None else from_zero(*found, source.field.corner_um)
    if source.maps is not None:
        return small_picture(source.maps)
    assert source.store is not None
    return small_picture(StoreSource(source.store, ""))


def _write_folder(
    source: CellSource, data: CellData, table: AnnData, about: dict[str, Any], path: Path
) -> None:
    lattice = data.cells.lattice
    um_to_px = lattice.homography.um_to_px(lattice.row0, lattice.col0, *lattice.shape)[0]
    corner_um = float(BIN_UM * lattice.col0), float(BIN_UM * lattice.row0)
    folder = Folder(path, "spatialdata", {}, corner_um, um_to_px)
    if source.field is not None:
        copy_picture(source.field, folder)
    elif source.maps is not None:
        write_picture(source.maps, folder)
    elif source.store is not None:
        write_picture(StoreSource(source.store, ""), folder)
    folder.add_labels(TISSUE, lattice.shape, BIN_UM)[:] = lattice.tissue
    number = np.arange(1, len(data.cells) + 1, dtype=np.int64)
    _write_shapes(folder.root, data, number, um_to_px)
    table.obs["instance_id"] = number
    folder.add_table(TABLE, table, CELLS)
    folder.finish(virchow_st=about)


def _write_shapes(root: zarr.Group, data: CellData, number: Any, um_to_px: Float64Array) -> None:
    """``shapes/cells`` as SpatialData 0.3 has it: GeoParquet, and transformations."""
    group = root.require_group("shapes").create_group(CELLS)
    shapes = data.cells.polygons_um()
    types = sorted({shape.geom_type for shape in shapes})
    geometry = {"encoding": "WKB", "crs": None, "geometry_types": types}
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    index = "__index_level_0__"
    columns = [
        {
            "name": name,
            "field_name": name,
            "pandas_type": kind,
            "numpy_type": dtype,
            "metadata": None,
        }
        for name, kind, dtype in (
            ("cell_id", "unicode", "object"),
            ("class", "unicode", "object"),
            ("geometry", "bytes", "object"),
            (index, "int64", "int64"),
        )
    ]
    pandas = {"index_columns": [index], "column_indexes": [], "columns": columns}
    content = pa.table(
        {
            "cell_id": pa.array(data.cells.ids, pa.string()),
            "class": pa.array(data.cells.classes, pa.string()),
            "geometry": pa.array(shapely.to_wkb(shapes), pa.binary()),
            index: pa.array(number),
        }
    ).replace_schema_metadata({"geo": json.dumps(geo), "pandas": json.dumps(pandas)})
    file = root.store.root / group.path / "shapes.parquet"
    pq.write_table(content, file, compression="zstd")
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "xy"]
    steps: list[dict[str, Any]] = [
        {"type": "identity", "output": {"name": "global", "axes": axes}},
        {"type": "affine", "affine": um_to_px.tolist(), "output": {"name": FULLRES, "axes": axes}},
    ]
    group.attrs.update(
        {
            "encoding-type": "ngff:shapes",
            "axes": ["x", "y"],
            "coordinateTransformations": [
                {**step, "input": {"name": "xy", "axes": axes}} for step in steps
            ],
            "spatialdata_attrs": {"version": "0.3"},
        }
    )

"""``vst export``: writes a source as a SpatialData or OME-Zarr folder, an AnnData file or npz."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from virchow_st.config import ExportConfig
from virchow_st.errors import ConfigError
from virchow_st.field.bins import BinImages
from virchow_st.field.he_image import add_picture
from virchow_st.field.ngff import FLAVOURS, FULLRES, Folder
from virchow_st.kernels.pooling import sum_pool
from virchow_st.output.export.field import export_field
from virchow_st.output.export.sources import PX_PER_BIN, Source, blocks, homography, open_source
from virchow_st.output.export.tables import (
    CellTable,
    cell_names,
    check_format,
    to_anndata,
    write_h5ad,
    write_npz,
)
from virchow_st.output.export.vitessce import NO_GENES, VIEW, check_view, view_of
from virchow_st.runtime.atomic import check_absent, new_output, write_json
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.runtime.software import versions
from virchow_st.types import BIN_UM, BLOCK_BINS, CELL_BINS, Float32Array, Float64Array, UInt8Array

FORMAT = "virchow_st.export/1"
CELLS, TABLE = "bins_8um", "table"
"""Names of the labels of 8 µm bins and of their table; SpatialData requires both to differ."""
_LONGEST_PICTURE_PX = 2000  # as Space Ranger's hires image
_SOFTWARE = ("virchow_st", "numpy", "zarr")


def export_run(
    path: Path, out: Path, config: ExportConfig, progress: Progress = SILENT
) -> tuple[Path, str]:
    """Write predictions of a run on its test slide, a store, or a field for other programs.

    Args:
        path: an evaluated run, a store, or a field.
        out: what to write; it is written completely or not at all.
        config: options.
        progress: receives notes, warnings and step counts.

    Returns:
        ``out``, and a short description of its content.

    Raises:
        ConfigError, StoreError, FieldError: see `open_source` and `export_field`; ``out`` is there
            already, or a library that the format needs is not installed, or a format without a
            table, or a view, got no genes of a store.
    """
    check_absent(out)
    view = check_view(config.vitessce, out, config.format) if config.vitessce else None
    if view is not None:
        check_absent(view)
    if (path / "zarr.json").is_file():
        check_format(config.format)
        with new_output(out) as aside:
            summary = export_field(path, aside, config, FORMAT, progress)
            return out, summary + _view(aside / "result", view, config)
    with open_source(path, config.genes, config.slide, config.keep_paths) as source:
        is_store = source.kinds == ("counts",)
        check_format(config.format, config.format == "spatialdata" and is_store)
        if not len(source.panel) and config.format in ("ome-zarr", "npz"):
            raise ConfigError(
                f"format {config.format}: expected the genes to write; a store has "
                "too many for images; name some with --genes, or choose spatialdata or h5ad"
            )
        if view is not None and not len(source.panel):
            raise ConfigError(NO_GENES)
        about = _provenance(source, config)
        if about["licence"] and not is_store:  # of a store, nothing leaves that the encoder made
            progress.warn(f"{about['encoder']['name']}: {about['licence']}")
        with new_output(out) as aside:
            result = aside / "result"
            if config.format in FLAVOURS:
                summary = _write_folder(source, result, config.format, about, progress)
            elif config.format == "h5ad":
                table = _table(source, not len(source.panel), with_picture=True)
                write_h5ad(result, table, about)
                summary = f"{len(table.row):,} bins of 8 µm × {len(table.genes):,} genes"
            else:
                summary = _write_npz(source, result, about, progress)
            summary += _view(result, view, config)
    return out, summary


def _view(folder: Path, path: Path | None, config: ExportConfig) -> str:
    """Write the view of a finished folder, if one is asked for; the end of the summary."""
    if path is None:
        return ""
    images = {image.name for image in (folder / "images").iterdir() if image.is_dir()}
    write_json(path, view_of(config.vitessce, path.name.removesuffix(VIEW), images))
    return f"; a view for Vitessce in {path.name}"


def _write_folder(
    source: Source, path: Path, flavour: str, about: dict[str, Any], progress: Progress
) -> str:
    """Write images, labels and, from a store, the table of all genes, block by block."""
    shape = source.tissue_mask.shape
    corner_um = float(BIN_UM * source.col0), float(BIN_UM * source.row0)
    folder = Folder(path, flavour, {}, corner_um, source_um_to_px(source)[0])
    write_picture(source, folder)
    folder.add_labels("tissue", shape, BIN_UM)[:] = source.tissue_mask
    summary = f"{shape[0]}×{shape[1]} bins"
    if len(source.panel):
        _write_images(source, folder, shape, progress)
        summary += f", {len(source.panel)} genes as images"
    if flavour == "spatialdata" and source.kinds == ("counts",):
        summary += f", {_add_table(source, folder, about)}"
    folder.finish(virchow_st=about)
    return summary


def write_picture(source: Source, folder: Folder) -> None:
    """Write the stored H&E as ``images/he``, band by band."""
    rows, cols = source.tissue_mask.shape
    picture = add_picture(folder, PX_PER_BIN * rows, PX_PER_BIN * cols, BIN_UM / PX_PER_BIN)
    for row in range(0, rows, BLOCK_BINS):
        band = slice(row, min(row + BLOCK_BINS, rows))
        picture.write(PX_PER_BIN * row, source.read_image(band))
    picture.fill_coarser()


def _write_images(
    source: Source, folder: Folder, shape: tuple[int, ...], progress: Progress
) -> None:
    channels = source.panel.labels
    images = {
        kind: BinImages(folder, kind, channels, (shape[0], shape[1]), exact=kind == "counts")
        for kind in source.kinds
    }
    every = list(blocks(source))
    for n, (rows, cols) in enumerate(every, start=1):
        for kind, image in images.items():
            image.write(rows.start, cols.start, source.read(kind, rows, cols))
        progress.step(n, len(every), "blocks")


def _add_table(source: Source, folder: Folder, about: dict[str, Any]) -> str:
    table = _table(source, every_gene=True, with_picture=False)
    adata = to_anndata(table, about)
    adata.obs["instance_id"] = np.arange(1, len(table.row) + 1, dtype=np.int32)
    rows, cols = (n // CELL_BINS for n in source.tissue_mask.shape)
    ids = np.zeros((rows, cols), np.int32)
    first = source.row0 // CELL_BINS, source.col0 // CELL_BINS
    ids[table.row - first[0], table.col - first[1]] = adata.obs["instance_id"]
    folder.add_labels(CELLS, (rows, cols), BIN_UM * CELL_BINS, "int32")[:] = ids
    folder.add_table(TABLE, adata, CELLS)
    return f"a table of {len(table.row):,} bins of 8 µm × {len(table.genes):,} genes"


def _table(source: Source, every_gene: bool, with_picture: bool) -> CellTable:
    """The source's 8 µm bins, numbered on the 8 µm grid of its lattice."""
    panel, cells = source.cells(every_gene)
    if not len(cells.row):
        raise ConfigError(
            f"{source.name}: expected 8 µm bins that are wholly tissue; found none; choose "
            "spatialdata, ome-zarr or npz"
        )
    row2, col2 = source.row0 + CELL_BINS * cells.row, source.col0 + CELL_BINS * cells.col
    centre = (CELL_BINS - 1) / 2
    fullres = homography(source).to_px(col2 + centre, row2 + centre)
    shift = source.row0 % CELL_BINS, source.col0 % CELL_BINS
    row, col = row2 // CELL_BINS, col2 // CELL_BINS
    # Space Ranger's 8 µm bins begin at bin (0, 0); a lattice that does not cuts others.
    names = (
        [f"bin_{r:05d}_{c:05d}" for r, c in zip(row2, col2, strict=True)]
        if any(shift)
        else cell_names(row, col)
    )
    first, *others = source.kinds
    return CellTable(
        values=cells.values[first],
        row=row,
        col=col,
        names=names,
        corner_um=(float(BIN_UM * shift[1]), float(BIN_UM * shift[0])),
        genes=panel,
        library=source.name,
        layers={kind: cells.values[kind] for kind in others},
        obs={"tissue_bins": cells.tissue_bins},
        obsm={f"spatial_{FULLRES}": np.stack(fullres, axis=1)},
        picture=small_picture(source) if with_picture else None,
    )


def small_picture(source: Source) -> tuple[UInt8Array, float]:
    """H&E from the corner of bin (0, 0) on, no side above 2000 px, and its µm/px."""
    rows, cols = source.tissue_mask.shape
    height, width = PX_PER_BIN * (source.row0 + rows), PX_PER_BIN * (source.col0 + cols)
    factor = -(-max(height, width) // _LONGEST_PICTURE_PX)
    small = -(-height // factor), -(-width // factor)
    canvas = np.full((small[0] * factor, small[1] * factor, 3), 255, np.uint8)
    for row in range(0, rows, BLOCK_BINS):
        band = source.read_image(slice(row, min(row + BLOCK_BINS, rows)))
        y, x = PX_PER_BIN * (source.row0 + row), PX_PER_BIN * source.col0
        canvas[y : y + len(band), x : x + band.shape[1]] = band
    rgb = cv2.resize(canvas, (small[1], small[0]), interpolation=cv2.INTER_AREA)
    return rgb, factor * BIN_UM / PX_PER_BIN


def _write_npz(source: Source, out: Path, about: dict[str, Any], progress: Progress) -> str:
    """Images of 8 µm bins in memory, and how many tissue bins each holds."""
    rows, cols = (n // CELL_BINS for n in source.tissue_mask.shape)
    images: dict[str, Float32Array] = {
        f"{kind}_8um": np.empty((len(source.panel), rows, cols), np.float32)
        for kind in source.kinds
    }
    every = list(blocks(source))
    for n, (r, c) in enumerate(every, start=1):
        at = tuple(slice(s.start // CELL_BINS, s.stop // CELL_BINS) for s in (r, c))
        for kind in source.kinds:
            images[f"{kind}_8um"][:, *at] = sum_pool(source.read(kind, r, c), CELL_BINS)
        progress.step(n, len(every), "blocks")
    tissue = source.tissue_mask.astype(np.float32)[None]
    write_npz(
        out,
        images,
        source.panel,
        about,
        tissue_bins=sum_pool(tissue, CELL_BINS)[0].astype(np.uint8),
        corner_um=np.array([BIN_UM * source.col0, BIN_UM * source.row0], np.float64),
    )
    return f"{len(source.panel)} genes × {rows}×{cols} bins of 8 µm"


def source_um_to_px(source: Source) -> tuple[Float64Array, float]:
    """See `virchow_st.slide.geometry.Homography.um_to_px`, over the source's area."""
    rows, cols = source.tissue_mask.shape
    return homography(source).um_to_px(source.row0, source.col0, rows, cols)


def _provenance(source: Source, config: ExportConfig) -> dict[str, Any]:
    manifest = source.manifest
    affine, error_px = source_um_to_px(source)
    units = {"rates": "expected UMIs a bin", "counts": "UMIs a bin"}
    return {
        "format": FORMAT,
        **source.about(),
        "patient": manifest["patient"],
        "slide": manifest["slide"],
        "units": {kind: units[kind] for kind in source.kinds},
        "frame": "µm from the outer corner of bin (0, 0), x along array_col, y along array_row",
        "first_bin": [source.row0, source.col0],
        "homography": manifest["homography"],
        FULLRES: {
            "affine": affine.tolist(),
            "largest_error": error_px,
        },
        "mpp": manifest["mpp"],
        "genes": {"id": list(source.panel.ids), "symbol": list(source.panel.symbols)},
        "encoder": {name: manifest["encoder"][name] for name in ("name", "weights")},
        "licence": manifest["encoder"]["licence"],
        "inputs": manifest["job"]["inputs"],
        "options": {"format": config.format},
        "software": versions(_SOFTWARE),
    }

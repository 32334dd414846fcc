"""Exports genes of a rate field: as images, or as 8 µm bins in one file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from virchow_st.config import ExportConfig
from virchow_st.errors import ConfigError
from virchow_st.field.he_image import CHUNK_PX, Picture, add_picture
from virchow_st.field.loadings import Loadings
from virchow_st.field.ngff import FLAVOURS, Folder
from virchow_st.field.read import Field, open_field
from virchow_st.field.write import FAILED, TISSUE, FieldMaps, SourceBlock, write_sources
from virchow_st.output.export.convert import convert
from virchow_st.run.panel import Panel
from virchow_st.runtime.progress import Progress
from virchow_st.runtime.software import versions
from virchow_st.store.genes import split_names
from virchow_st.types import BIN_UM, BLOCK_BINS, CELL_BINS, Int64Array

_SOFTWARE = ("virchow_st", "numpy", "zarr")


def export_field(
    path: Path, aside: Path, config: ExportConfig, format_name: str, progress: Progress
) -> str:
    """Write some genes of a field to ``aside / "result"``, block by block.

    As a folder the result is a field again, which holds these genes directly.

    Args:
        path: of the field.
        aside: folder for unfinished work.
        config: options.
        format_name: name and version of the provenance.
        progress: receives step counts.

    Returns:
        A short description of the content.

    Raises:
        ConfigError: no genes are named of a field by factors, or one that the field has not.
        FieldError: it is no field, or damaged.
    """
    if config.slide:
        raise ConfigError(f"slide: {path} is a field, of one slide; leave out --slide")
    field = open_field(path)
    index = _chosen(field, config.genes)
    genes = Panel(tuple(field.genes[i] for i in index), tuple(field.symbols[i] for i in index))
    flavour = config.format if config.format in FLAVOURS else FLAVOURS[0]
    about = _about(field, genes, config, format_name)
    picture = write_genes(field, genes, aside / "zarr", flavour, about, progress)
    result = aside / "result"
    convert(aside / "zarr", result, config.format, genes, picture, path.stem, field.corner_um)
    rows, cols = field.shape
    if config.format in FLAVOURS:
        return f"{rows}×{cols} bins, {len(genes)} genes as images"
    return f"{len(genes)} genes × {rows // CELL_BINS}×{cols // CELL_BINS} bins of 8 µm"


def write_genes(
    field: Field,
    genes: Panel,
    path: Path,
    flavour: str,
    provenance: dict[str, Any],
    progress: Progress,
) -> Picture | None:
    """Write a field that holds some genes of another directly, block by block.

    What the other knows of its rates' errors, of what they rest on, and of bins that failed, goes
    with them.

    Args:
        field: the other.
        genes: of its genes.
        path: folder to create.
        flavour: see `Folder`.
        provenance: of the new field.
        progress: receives step counts.

    Returns:
        The H&E picture of the new field, if the other has one.
    """
    folder = Folder(path, flavour, {}, field.corner_um, field.layers.um_to_px)
    picture = copy_picture(field, folder)
    labels = {TISSUE: field.layers.tissue, FAILED: field.layers.failed}
    for name, array in labels.items():
        if array is not None:
            mask = field.layers.read_labels(array)
            folder.add_labels(name, mask.shape, BIN_UM * field.shape[0] / mask.shape[0])[:] = mask
    if field.layers.sources:
        write_sources(folder, field.shape, _source_blocks(field))
    maps = FieldMaps(folder, Loadings(genes), field.shape)
    rows, cols = field.shape
    places = [(r, c) for r in range(0, rows, BLOCK_BINS) for c in range(0, cols, BLOCK_BINS)]
    for n, (row, col) in enumerate(places, start=1):
        size = min(BLOCK_BINS, rows - row), min(BLOCK_BINS, cols - col)
        maps.write(row, col, field.window(row, col, *size, list(genes.ids)))
        progress.step(n, len(places), "blocks")
    errors = field.layers.errors
    maps.finish(provenance, None if errors is None else errors.of_genes(field.index(genes.ids)))
    return picture


def _source_blocks(field: Field) -> Iterator[SourceBlock]:
    for row in range(0, field.shape[0], BLOCK_BINS):
        stop = row + BLOCK_BINS
        fine = field.layers.read_sources(BIN_UM, slice(row, stop))
        cells = slice(row // CELL_BINS, stop // CELL_BINS)
        yield row, 0, fine, field.layers.read_sources(BIN_UM * CELL_BINS, cells)


def _chosen(field: Field, names: str) -> Int64Array:
    if names:
        return field.index(split_names(names))
    if field.is_direct:
        return field.index()
    raise ConfigError(
        f"{field.path}: expected the genes to write; a field by factors has {len(field.genes):,}, "
        "too many for images; name some with --genes"
    )


def copy_picture(field: Field, folder: Folder) -> Picture | None:
    """The H&E picture as it is, band by band."""
    if field.layers.picture is None:
        return None
    levels, um_per_px = field.layers.picture
    _, height, width = levels[0].shape
    picture = add_picture(folder, height, width, um_per_px, fewest_levels=len(levels))
    for top in range(0, height, CHUNK_PX):
        picture.write(top, field.layers.read_pixels(0, slice(top, min(top + CHUNK_PX, height))))
    picture.fill_coarser()
    return picture


def _about(field: Field, genes: Panel, config: ExportConfig, format_name: str) -> dict[str, Any]:
    of_field = {name: of for name, of in field.provenance.items() if name != "genes"}
    return {
        "format": format_name,
        "source": "field",
        "field": {
            "path": str(field.path) if config.keep_paths else field.path.resolve().name,
            "provenance": of_field,
        },
        "units": {"rates": "expected UMIs a bin"},
        "genes": {"id": list(genes.ids), "symbol": list(genes.symbols)},
        "options": {"format": config.format},
        "software": versions(_SOFTWARE),
    }

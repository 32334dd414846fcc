"""Converts a finished Zarr folder of genes to the requested format, if it is a single file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr

from virchow_st.field.bins import CELL_UM
from virchow_st.field.he_image import Picture
from virchow_st.field.read import Field, open_field
from virchow_st.kernels.pooling import pool_mask, sum_pool
from virchow_st.output.export.tables import CellTable, cell_names, write_h5ad, write_npz
from virchow_st.run.panel import Panel
from virchow_st.types import CELL_BINS, BoolArray, Float32Array, UInt8Array

_LONGEST_PICTURE_PX = 2000  # as Space Ranger's hires image


def convert(
    folder: Path,
    out: Path,
    name: str,
    panel: Panel,
    picture: Picture | None,
    library: str,
    corner_um: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Make the result from the finished Zarr folder: the folder itself, or one file.

    Args:
        folder: holds genes directly; it is moved if it is the result.
        out: what to write.
        name: ``"spatialdata"``, ``"ome-zarr"``, ``"h5ad"`` or ``"npz"``. The last two hold the
            rates at 8 µm in memory: 4 bytes per gene and cell; four times that of a field with
            intervals, whose bounds and spread are written too.
        panel: its genes.
        picture: H&E image of the slide, if there is one.
        library: name of the slide, under which AnnData has the image.
        corner_um: ``(x, y)`` of the folder's top left corner.
    """
    if name not in ("h5ad", "npz"):
        folder.rename(out)
        return
    root = zarr.open_group(str(folder), mode="r")
    about: dict[str, Any] = root.attrs["virchow_st"]
    images: dict[str, Float32Array] = {
        name: np.asarray(root[f"images/{name}/s0"][:])
        for name in ("rates_8um", "spread_8um")
        if f"images/{name}" in root
    }
    field = open_field(folder)
    if field.layers.errors is not None:
        images |= _errors(field, panel)
    filled = _filled(field)
    tissue = _in_cells(root["labels/tissue/s0"][:].astype(bool), images["rates_8um"].shape[1])
    if name == "npz":
        write_npz(out, images, panel, about, tissue=tissue, **filled)
        return
    row, col = np.nonzero(tissue & ~np.isnan(images["rates_8um"][0]))
    values = {
        name.removesuffix("_8um"): np.ascontiguousarray(image[:, row, col].T)
        for name, image in images.items()
    }
    (col0, rest_x), (row0, rest_y) = (divmod(at, CELL_UM) for at in corner_um)
    row, col = row + int(row0), col + int(col0)
    table = CellTable(
        values=values.pop("rates"),
        row=row,
        col=col,
        names=cell_names(row, col),
        corner_um=(rest_x, rest_y),
        genes=panel,
        library=library,
        layers=values,
        obs={name: share[row, col] for name, share in filled.items()},
        picture=None if picture is None else _from_zero(picture, corner_um),
    )
    write_h5ad(out, table, about)


def _errors(field: Field, panel: Panel) -> dict[str, Float32Array]:
    """Bounds and standard deviation of the rates of 8 µm bins, (G, rows, columns) by name."""
    bounds = [field.interval(gene, CELL_UM) for gene in panel.ids]
    return {
        "low_8um": np.stack([low for low, _ in bounds]),
        "high_8um": np.stack([high for _, high in bounds]),
        "spread_8um": np.stack([field.spread(gene, CELL_UM) for gene in panel.ids]),
    }


def _filled(field: Field) -> dict[str, Float32Array]:
    """Share of each 8 µm bin's 2 µm bins that had no counts; empty where no bin failed."""
    if field.layers.failed is None:
        return {}
    share = sum_pool(field.failed[None].astype(np.float32), CELL_BINS)[0] / CELL_BINS**2
    return {"filled": share.astype(np.float32)}


def _in_cells(tissue: BoolArray, n_rows: int) -> BoolArray:
    """The tissue mask in cells of 8 µm; of one of 2 µm bins, the cells that are wholly tissue."""
    return tissue if len(tissue) == n_rows else pool_mask(tissue, CELL_BINS)


def _from_zero(picture: Picture, corner_um: tuple[float, float]) -> tuple[UInt8Array, float]:
    """The picture, small, with white before its corner, so that it begins at (0, 0) µm."""
    return from_zero(*picture.read_small(_LONGEST_PICTURE_PX), corner_um)


def from_zero(
    rgb: UInt8Array, um_per_px: float, corner_um: tuple[float, float]
) -> tuple[UInt8Array, float]:
    """A picture with white before its corner, so that it begins at (0, 0) µm; and its µm/px."""
    left, top = (round(at / um_per_px) for at in corner_um)
    return np.pad(rgb, ((top, 0), (left, 0), (0, 0)), constant_values=255), um_per_px

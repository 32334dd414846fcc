"""Converts a finished Zarr folder to the requested format, if it is a single file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr

from virchow_st.field.he_image import Picture
from virchow_st.output.export.tables import CellTable, cell_names, write_h5ad, write_npz
from virchow_st.run.panel import Panel
from virchow_st.types import BoolArray, Float32Array

_LONGEST_PICTURE_PX = 2000  # as Space Ranger's hires image


def convert(folder: Path, out: Path, name: str, panel: Panel, picture: Picture) -> None:
    """Make the result from the finished Zarr folder: the folder itself, or one file.

    Args:
        folder: written by `predict_slide`; it is moved if it is the result.
        out: what to write.
        name: ``"spatialdata"``, ``"ome-zarr"``, ``"h5ad"`` or ``"npz"``. The last two hold the
            rates at 8 µm in memory: 4 bytes per gene and cell.
        panel: its genes.
        picture: H&E image of the slide.
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
    tissue: BoolArray = root["labels/tissue/s0"][:].astype(bool)
    if name == "npz":
        write_npz(out, images, panel, about, tissue=tissue)
        return
    row, col = np.nonzero(tissue & ~np.isnan(images["rates_8um"][0]))
    values, *spread = (np.ascontiguousarray(image[:, row, col].T) for image in images.values())
    table = CellTable(
        values=values,
        row=row,
        col=col,
        names=cell_names(row, col),
        corner_um=(0.0, 0.0),
        genes=panel,
        library=about["image"]["name"],
        layers={"spread": spread[0]} if spread else {},
        picture=picture.read_small(_LONGEST_PICTURE_PX),
    )
    write_h5ad(out, table, about)

"""8 µm bins × genes as one file: AnnData for scanpy and squidpy, or NumPy's npz."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.output.export.bins import CELL_UM, channel_names
from virchow_st.run.panel import Panel
from virchow_st.types import Array, Int64Array, UInt8Array

if TYPE_CHECKING:
    from anndata import AnnData

_INSTALL = "`pip install 'virchow_st[spatial]'`"


def check_format(name: str, needs_anndata: bool = False) -> None:
    """Raise `ConfigError` where a library that a format needs is not installed."""
    if (needs_anndata or name == "h5ad") and find_spec("anndata") is None:
        raise ConfigError(
            f"format {name}: anndata is not installed; {_INSTALL}, or choose another --format"
        )


@dataclass(frozen=True, eq=False)
class CellTable:
    """Values of 8 µm bins, n of them.

    Attributes:
        values: (n, G) float32, dense or SciPy sparse.
        row, col: (n,) int64 of each bin on its grid of 8 µm.
        names: of the bins, each once.
        corner_um: ``(x, y)`` of the grid's bin (0, 0), its top left corner.
        genes: G of them.
        layers: more values of the same shape, by name.
        obs: more about each bin, (n,) by name.
        obsm: more coordinates, (n, 2) by name.
        picture: (H, W, 3) uint8 RGB from (0, 0) µm on, and its µm/px; None for none.
        library: name of the slide, under which the picture is kept.
    """

    values: Any
    row: Int64Array
    col: Int64Array
    names: list[str]
    corner_um: tuple[float, float]
    genes: Panel
    library: str
    layers: Mapping[str, Any] = field(default_factory=dict)
    obs: Mapping[str, Array] = field(default_factory=dict)
    obsm: Mapping[str, Array] = field(default_factory=dict)
    picture: tuple[UInt8Array, float] | None = None


def cell_names(row: Int64Array, col: Int64Array) -> list[str]:
    """Names of 8 µm bins as Space Ranger gives them."""
    return [f"s_008um_{r:05d}_{c:05d}-1" for r, c in zip(row, col, strict=True)]


def to_anndata(table: CellTable, about: dict[str, Any]) -> AnnData:
    """The table as scanpy and squidpy have it.

    ``obsm["spatial"]`` are the bins' centres ``(x, y)`` in µm, ``uns["spatial"]`` is the picture in
    the same frame, ``uns["virchow_st"]`` where it came from, as JSON.
    """
    import anndata
    import pandas as pd

    xy = np.stack([table.col, table.row], axis=1)
    made = anndata.AnnData(
        X=table.values,
        obs=pd.DataFrame(
            {"array_row": table.row, "array_col": table.col, **table.obs}, index=table.names
        ),
        var=pd.DataFrame(
            {"gene_id": list(table.genes.ids), "symbol": list(table.genes.symbols)},
            index=channel_names(table.genes),
        ),
        layers=dict(table.layers),
        obsm={"spatial": CELL_UM * (xy + 0.5) + np.asarray(table.corner_um), **table.obsm},
        uns={"virchow_st": json.dumps(about, ensure_ascii=False)},
    )
    if table.picture is not None:
        rgb, um_per_px = table.picture
        made.uns["spatial"] = {
            table.library: {
                "images": {"hires": rgb},
                "scalefactors": {
                    "tissue_hires_scalef": 1 / um_per_px,
                    "spot_diameter_fullres": float(CELL_UM),  # in the unit of obsm["spatial"]
                },
            }
        }
    return made


def write_h5ad(out: Path, table: CellTable, about: dict[str, Any]) -> None:
    """Write the table as an AnnData file."""
    to_anndata(table, about).write_h5ad(out, compression="gzip")


def write_npz(
    out: Path, images: Mapping[str, Array], genes: Panel, about: dict[str, Any], **more: Any
) -> None:
    """Write (G, rows, columns) arrays of 8 µm bins by name, the genes, and where it came from."""
    content: dict[str, Any] = {**images, **more}
    with open(out, "wb") as file:  # a path would get the suffix .npz
        np.savez_compressed(
            file,
            allow_pickle=False,
            **content,
            um_per_cell=np.array(CELL_UM),
            gene_id=np.array(genes.ids),
            gene_symbol=np.array(genes.symbols),
            virchow_st=np.array(json.dumps(about, ensure_ascii=False)),
        )

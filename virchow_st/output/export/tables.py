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
from virchow_st.field.bins import CELL_UM
from virchow_st.names import tree_key
from virchow_st.run.panel import Panel
from virchow_st.runtime.hdf5 import written_hdf5
from virchow_st.types import Array, Int64Array, UInt8Array

if TYPE_CHECKING:
    from anndata import AnnData

_INSTALL = "`pip install 'virchow_st[spatial]'`"


def check_format(name: str, needs_anndata: bool = False) -> None:
    """Raise `ConfigError` if a library that a format needs is not installed."""
    if (needs_anndata or name == "h5ad") and find_spec("anndata") is None:
        raise ConfigError(
            f"format {name}: anndata is not installed; {_INSTALL}, or choose another --format"
        )


@dataclass(frozen=True, eq=False)
class CellTable:
    """Values of 8 µm bins, n of them.

    Attributes:
        values: (n, G) float32, dense or SciPy sparse.
        row, col: (n,) int64, position of each bin on the 8 µm grid.
        names: of the bins, without duplicates.
        corner_um: ``(x, y)`` of the grid's bin (0, 0), its top left corner.
        genes: the G genes.
        layers: further values of the same shape, by name.
        obs: further columns about the bins, (n,) by name.
        obsm: further coordinates, (n, 2) by name.
        picture: (H, W, 3) uint8 RGB whose corner is (0, 0) µm, and its µm/px; or None.
        library: name of the slide, under which the image is stored, see `tree_key`.
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
    """Names of 8 µm bins as Space Ranger gives them.

    >>> cell_names(np.array([0]), np.array([42]))
    ['s_008um_00000_00042-1']
    """
    return [f"s_008um_{r:05d}_{c:05d}-1" for r, c in zip(row, col, strict=True)]


def to_anndata(table: CellTable, about: dict[str, Any]) -> AnnData:
    """The table in the layout of scanpy and squidpy.

    ``obsm["spatial"]`` holds the bins' centres ``(x, y)`` in µm, ``uns["spatial"]`` the H&E image
    in the same frame, and ``uns["virchow_st"]`` the provenance as JSON.
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
            index=table.genes.labels,
        ),
        layers=dict(table.layers),
        obsm={"spatial": CELL_UM * (xy + 0.5) + np.asarray(table.corner_um), **table.obsm},
        uns={"virchow_st": json.dumps(about, ensure_ascii=False)},
    )
    if table.picture is not None:
        rgb, um_per_px = table.picture
        made.uns["spatial"] = {
            tree_key(table.library): {
                "images": {"hires": rgb},
                "scalefactors": {
                    "tissue_hires_scalef": 1 / um_per_px,
                    "spot_diameter_fullres": float(CELL_UM),  # in the unit of obsm["spatial"]
                },
            }
        }
    return made


def write_h5ad(out: Path, table: CellTable, about: dict[str, Any]) -> None:
    """Write the table as an AnnData file, as `anndata.AnnData.write_h5ad` does.

    That opens the file by itself, and HDF5 ends the process with a segmentation fault where the
    disk is full; see `virchow_st.runtime.hdf5`.

    Raises:
        OSError: the file cannot be written.
    """
    from anndata.io import write_elem

    made = to_anndata(table, about)
    made.strings_to_categoricals()
    with written_hdf5(out) as output:
        write_elem(output.file, "/", made, dataset_kwargs={"compression": "gzip"})


def write_npz(
    out: Path, images: Mapping[str, Array], genes: Panel, about: dict[str, Any], **more: Any
) -> None:
    """Write arrays (G, rows, columns) of 8 µm bins by name, with genes and provenance, as npz."""
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

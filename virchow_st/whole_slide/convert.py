"""The rates at 8 µm as one file: AnnData for scanpy and squidpy, or NumPy's npz."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from virchow_st.errors import ConfigError
from virchow_st.types import BoolArray, Float32Array

_CELL_UM = 8


def check_format(name: str) -> None:
    """Raise `ConfigError` where a library that a format needs is not installed."""
    if name == "h5ad" and find_spec("anndata") is None:
        raise ConfigError(
            "format h5ad: anndata is not installed; "
            "`pip install 'virchow_st[spatial]'`, or choose npz"
        )


def convert(folder: Path, out: Path, name: str) -> None:
    """Make the result from the finished Zarr folder: the folder itself, or one file of it.

    Args:
        folder: written by `predict_slide`; moved where it is the result.
        out: what to write.
        name: ``"spatialdata"``, ``"ome-zarr"``, ``"h5ad"`` or ``"npz"``. The last two hold the
            rates at 8 µm in memory: 4 bytes a gene and cell.
    """
    if name == "h5ad":
        _write_h5ad(folder, out)
    elif name == "npz":
        _write_npz(folder, out)
    else:
        folder.rename(out)


def _images(root: zarr.Group) -> dict[str, Float32Array]:
    names = ("rates_8um", "spread_8um")
    return {n: np.asarray(root[f"images/{n}/s0"][:]) for n in names if f"images/{n}" in root}


def _write_npz(folder: Path, out: Path) -> None:
    root = zarr.open_group(str(folder), mode="r")
    about: dict[str, Any] = root.attrs["virchow_st"]
    with open(out, "wb") as file:  # a path would get the suffix .npz
        content: dict[str, Any] = dict(_images(root))
        np.savez_compressed(
            file,
            allow_pickle=False,
            **content,
            tissue=root["labels/tissue/s0"][:].astype(bool),
            um_per_cell=np.array(_CELL_UM),
            gene_id=np.array(about["genes"]["id"]),
            gene_symbol=np.array(about["genes"]["symbol"]),
            virchow_st=np.array(json.dumps(about, ensure_ascii=False)),
        )


def _write_h5ad(folder: Path, out: Path) -> None:
    import anndata
    import pandas as pd

    root = zarr.open_group(str(folder), mode="r")
    about: dict[str, Any] = root.attrs["virchow_st"]
    images = _images(root)
    tissue: BoolArray = root["labels/tissue/s0"][:].astype(bool)
    row, col = np.nonzero(tissue & ~np.isnan(images["rates_8um"][0]))
    names = root["images/rates_8um"].attrs["ome"]["omero"]["channels"]
    table = anndata.AnnData(
        X=np.ascontiguousarray(images["rates_8um"][:, row, col].T),
        obs=pd.DataFrame(
            {"array_row": row, "array_col": col},
            index=[f"s_008um_{r:05d}_{c:05d}-1" for r, c in zip(row, col, strict=True)],
        ),
        var=pd.DataFrame(
            {"gene_id": about["genes"]["id"], "symbol": about["genes"]["symbol"]},
            index=[channel["label"] for channel in names],
        ),
        obsm={"spatial": _CELL_UM * (np.stack([col, row], axis=1) + 0.5)},
        uns={"virchow_st": json.dumps(about, ensure_ascii=False)},
    )
    if "spread_8um" in images:
        table.layers["spread"] = np.ascontiguousarray(images["spread_8um"][:, row, col].T)
    table.write_h5ad(out, compression="gzip")

"""The table ``loadings`` of a field, as AnnData lays a table out in Zarr, without AnnData.

The encoding is that of https://anndata.readthedocs.io/en/stable/fileformat-prose.html: groups and
arrays with the attributes ``encoding-type`` and ``encoding-version``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr

from virchow_st.field.loadings import Loadings
from virchow_st.field.ngff import PACKED
from virchow_st.run.panel import Panel
from virchow_st.types import Array

NAME = "loadings"
MOST_GENES = 1 << 20
MOST_FACTORS = 1 << 16
_CHUNK_GENES = 4096


def write_loadings(root: zarr.Group, loadings: Loadings) -> None:
    """Write ``tables/loadings``: genes as ``obs``, factors as ``var``, loadings as ``X``."""
    table = root.require_group("tables").create_group(NAME)
    table.attrs.update(
        _encoded("anndata", "0.1.0")
        | {
            "spatialdata-encoding-type": "ngff:regions_table",
            "version": "0.2",
            "region": None,
            "region_key": None,
            "instance_key": None,
        }
    )
    genes = loadings.genes
    _write_frame(table, "obs", loadings.labels, {"gene_id": genes.ids, "symbol": genes.symbols})
    leading = [", ".join(labels) for labels in loadings.leading]
    _write_frame(table, "var", loadings.factor_names, {"leading_genes": leading})
    for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
        table.create_group(name).attrs.update(_encoded("dict", "0.1.0"))
    if loadings.values is None:
        _write_identity(table, len(genes))
    else:
        _write_array(table, "X", loadings.values)


def read_loadings(table: zarr.Group, is_direct: bool) -> Loadings:
    """Read what `write_loadings` or AnnData wrote.

    Raises:
        ValueError: in a few words, what was expected and what was found.
    """
    ids, symbols = (_read_texts(table, f"obs/{name}", MOST_GENES) for name in ("gene_id", "symbol"))
    if not ids or len(symbols) != len(ids) or len(set(ids)) < len(ids):
        raise ValueError("expected ids of genes, each once, and as many symbols")
    genes = Panel(ids, symbols)
    if is_direct:
        return Loadings(genes)
    values = _array(table, "X")
    if values.ndim != 2 or values.shape[0] != len(ids) or values.shape[1] > MOST_FACTORS:
        raise ValueError(f"expected X of {len(ids)} genes × factors; got {values.shape}")
    if values.dtype != np.float32:
        raise ValueError(f"expected X of float32; got {values.dtype}")
    return Loadings(genes, np.asarray(values[:]))


def _write_frame(
    table: zarr.Group, name: str, index: Sequence[str], columns: Mapping[str, Sequence[str]]
) -> None:
    group = table.create_group(name)
    group.attrs.update(
        _encoded("dataframe", "0.2.0") | {"_index": "_index", "column-order": list(columns)}
    )
    for column, texts in {"_index": index, **columns}.items():
        array = group.create_array(
            column,
            shape=(len(texts),),
            dtype="string",
            chunks=(max(len(texts), 1),),
            compressors=PACKED,
            attributes=_encoded("string-array", "0.2.0"),
        )
        array[:] = np.array(texts, dtype=np.dtypes.StringDType())


def _write_array(group: zarr.Group, name: str, values: Array) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(min(len(values), _CHUNK_GENES), *values.shape[1:]),
        compressors=PACKED,
        attributes=_encoded("array", "0.2.0"),
    )
    array[:] = values


def _write_identity(table: zarr.Group, n: int) -> None:
    group = table.create_group("X")
    group.attrs.update(_encoded("csr_matrix", "0.1.0") | {"shape": [n, n]})
    _write_array(group, "data", np.ones(n, np.float32))
    _write_array(group, "indices", np.arange(n, dtype=np.int32))
    _write_array(group, "indptr", np.arange(n + 1, dtype=np.int32))


def _encoded(kind: str, version: str) -> dict[str, Any]:
    return {"encoding-type": kind, "encoding-version": version}


def _array(group: zarr.Group, name: str) -> zarr.Array:
    found = group.get(name)
    if not isinstance(found, zarr.Array):
        raise ValueError(f"{name} is missing")
    return found


def _read_texts(group: zarr.Group, name: str, most: int) -> tuple[str, ...]:
    array = _array(group, name)
    if array.ndim != 1 or array.shape[0] > most:
        raise ValueError(f"{name}: expected a list of up to {most:,}; got shape {array.shape}")
    texts = array[:].tolist()
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name}: expected text")
    return tuple(texts)

"""Expected UMIs of one gene in every cell of a table, and their bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.field.interval import NAME
from virchow_st.output.cells.errors import GROUP, cell_bounds, stored_errors
from virchow_st.types import Float32Array

if TYPE_CHECKING:
    from anndata import AnnData


def cell_rates(adata: AnnData, gene: str) -> Float32Array:
    """Expected UMIs of one gene in every cell, also where the table has no ``X``.

    Args:
        adata: what `cell_table` returned or ``vst cells`` wrote.
        gene: its label in ``var_names``, or its id.

    Returns:
        (n,) float32: ``X`` where it is there, else factors times loadings.

    Raises:
        ConfigError: no such gene, or a table without expected UMIs.

    Example:
        >>> adata.obs["PIGR rate"] = cell_rates(adata, "PIGR")  # doctest: +SKIP
    """
    return _rates(adata, _gene_index(adata, gene))


def cell_interval(adata: AnnData, gene: str) -> tuple[Float32Array, Float32Array]:
    """Bounds between which the true UMIs of a gene lie in 90 % of the cells.

    Of cells from a field of ``vst denoise``. The true UMIs are those that the cell would give in
    the mean of many such measurements, not the counts of one. The share is over cells and genes of
    similar abundance; docs/cells.md says how often it holds.

    Args:
        adata: what `virchow_st.cell_table` returned or ``vst cells`` wrote, whole or some of its
            cells and genes.
        gene: its label in ``var_names``, or its id.

    Returns:
        Lower and upper bound, (n,) float32 UMIs each, around `virchow_st.cell_rates`; NaN in cells
        without a bin of tissue with rates.

    Raises:
        ConfigError: no such gene, or a table whose errors are not known.

    Example:
        >>> low, high = cell_interval(adata, "PIGR")  # doctest: +SKIP
    """
    g = _gene_index(adata, gene)
    stored = adata.uns.get(NAME)
    if stored is None or GROUP not in adata.var:
        raise ConfigError(
            "table: expected cells of a field of `vst denoise`, which knows the errors of its "
            "rates; found none; see uns['interval']"
        )
    errors = stored_errors(stored, adata.var.iloc[[g]])
    low, high = cell_bounds(errors, _rates(adata, g)[:, None], adata.obs)
    return low[:, 0], high[:, 0]


def _gene_index(adata: AnnData, gene: str) -> int:
    found = np.flatnonzero((adata.var_names == gene) | (adata.var["gene_id"] == gene))
    if len(found) != 1:
        raise ConfigError(
            f"gene: expected one of the table's {adata.n_vars:,}; got {gene!a}; see var_names"
        )
    return int(found[0])


def _rates(adata: AnnData, g: int) -> Float32Array:
    if "factors" in adata.obsm and "loadings" in adata.varm:
        rates = np.asarray(adata.obsm["factors"]) @ np.asarray(adata.varm["loadings"])[g]
    elif adata.X is not None and adata.uns.get("X") == "expected":
        rates = np.asarray(adata.X[:, g]).ravel()
    else:
        raise ConfigError("table: expected rates; it holds observed counts only; see layers")
    return rates.astype(np.float32)

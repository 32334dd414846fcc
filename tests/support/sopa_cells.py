"""Counts of cells by sopa, from bins and outlines in full-resolution px."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely


def sopa_counts(
    bins: np.ndarray, counts: np.ndarray, cells: np.ndarray, no_overlap: bool = False
) -> np.ndarray:
    """What ``sopa.aggregation.aggregate_bins`` makes of a slide.

    Args:
        bins: (M,) shapely polygons of the bins.
        counts: (M, G) their UMIs.
        cells: (n,) shapely polygons.
        no_overlap: sopa's option, under which a bin belongs to one cell.

    Returns:
        (n, G) UMIs of cells.
    """
    import anndata
    import geopandas as gpd
    import pandas as pd
    from scipy.sparse import csr_matrix
    from sopa.aggregation.bins import aggregate_bins
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel

    def shapes(of: np.ndarray, names: list[str]) -> Any:
        return ShapesModel.parse(gpd.GeoDataFrame(geometry=list(of), index=names))

    names = [f"b{i}" for i in range(len(bins))]
    obs = pd.DataFrame({"region": pd.Categorical(["bins"] * len(bins)), "bin": names}, index=names)
    table = TableModel.parse(
        anndata.AnnData(csr_matrix(counts), obs=obs),
        region="bins", region_key="region", instance_key="bin",
    )  # fmt: skip
    slide = SpatialData(
        shapes={
            "bins": shapes(bins, names),
            "cells": shapes(cells, [f"c{i}" for i in range(len(cells))]),
        },
        tables={"table": table},
    )
    found = aggregate_bins(slide, "cells", "table", no_overlap=no_overlap)
    return np.asarray(found.X.todense())


def bin_squares(rows: int, cols: int) -> np.ndarray:
    """(rows · cols,) squares in bin coordinates, which are centre-based."""
    row, col = (grid.ravel() for grid in np.indices((rows, cols)))
    return shapely.box(col - 0.5, row - 0.5, col + 0.5, row + 0.5)

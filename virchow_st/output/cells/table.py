"""Cells × genes as AnnData: expected and observed UMIs, factors and loadings."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from virchow_st.config import CellsConfig
from virchow_st.field.interval import NAME as INTERVAL
from virchow_st.field.ngff import FULLRES
from virchow_st.output.cells.errors import FILLED, cell_variance, error_columns
from virchow_st.output.cells.gather import CellData, summed
from virchow_st.output.cells.sources import CellSource, open_cell_source
from virchow_st.output.export.tables import check_format
from virchow_st.runtime.progress import SILENT, Progress
from virchow_st.runtime.software import versions

if TYPE_CHECKING:
    from anndata import AnnData

FORMAT = "virchow_st.cells/1"
MOST_DENSE = 100_000_000
"""Cells × genes up to which ``X`` of a field by factors is written: 0.4 GB."""
_SOFTWARE = ("virchow_st", "numpy", "scipy", "shapely", "anndata")


def cell_table(
    source: Path | str,
    cells: Path | str,
    config: CellsConfig | None = None,
    store: Path | str | None = None,
    progress: Progress = SILENT,
    image: Path | str | None = None,
) -> AnnData:
    """Expression of cells: of a store's counts, of a run's test slide, or of a rate field.

    Args:
        source: a store, an evaluated run, or a field of ``vst predict``, ``vst denoise`` or ``vst
            evaluate``.
        cells: Space Ranger 4's ``outs``, a GeoJSON, a label image, or SpatialData shapes; see
            `virchow_st.slide.cells.read.read_cells`. Or the name of a segmenter, such as
            ``"nuclei"``.
        config: options; the defaults if None.
        store: store of the same slide, for observed counts beside a run's or a field's rates.
        progress: receives notes, warnings and step counts.
        image: the slide's full-resolution image, for a segmenter.

    Returns:
        AnnData of n cells × G genes. ``X`` (n, G) float32 holds expected UMIs, or observed ones
        (sparse) of a store; it is absent where a field by factors would make more than 10⁸ values,
        see `virchow_st.cell_rates`. ``layers["observed"]`` is sparse, where there are counts;
        ``layers["variance"]`` (n, G) beside ``X``, of a field with errors of its rates;
        ``obsm["factors"]`` (n, K) and ``varm["loadings"]`` (G, K), of a field by factors;
        ``obsm["spatial"]`` (n, 2) ``(x, y)`` in µm. docs/cells.md has the rest.

    Raises:
        ConfigError, SlideError, StoreError, FieldError: in one line, what does not fit.

    Example:
        >>> adata = cell_table("P1_denoised.zarr", "P1/outs", store="P1.vst")  # doctest: +SKIP
        >>> adata  # doctest: +SKIP
        AnnData object with n_obs × n_vars = 48120 × 18085 …
    """
    config = config or CellsConfig()
    check_format("h5ad")
    given = None if store is None else Path(store)
    with open_cell_source(Path(source), given, config.slide, config.keep_paths) as opened:
        path = None if image is None else Path(image)
        data = summed(opened, Path(cells), config, progress, path)
        return to_anndata(opened, data, provenance_of(opened, Path(cells), config, data))


def to_anndata(source: CellSource, data: CellData, about: dict[str, Any]) -> AnnData:
    """The table; see `cell_table`."""
    import anndata
    import pandas as pd

    cells, lattice = data.cells, data.cells.lattice
    xy_um, xy_px = lattice.to_um(cells.centroids), lattice.to_px(cells.centroids)
    obs: dict[str, Any] = {
        "patient": pd.Categorical([source.patient] * len(cells)),
        "slide": pd.Categorical([source.name] * len(cells)),
        "class": pd.Categorical(cells.classes),
    }
    var: dict[str, Any] = {"gene_id": list(data.panel.ids), "symbol": list(data.panel.symbols)}
    columns = cell_columns(source, data)
    obs |= columns
    x: Any = None
    layers, obsm, varm = {}, {"spatial": xy_um, f"spatial_{FULLRES}": xy_px}, {}
    if data.observed is not None:
        var["measured"] = data.measured
    if data.expected is not None:
        sums = data.expected.of_cells
        weights = data.loadings
        if weights is None:
            x = sums.astype(np.float32)
        else:
            obsm["factors"], varm["loadings"] = sums.astype(np.float32), weights
            if len(cells) * len(data.panel) <= MOST_DENSE:
                x = obsm["factors"] @ weights.T
        if data.observed is not None:
            layers["observed"] = data.observed.of_cells
    elif data.observed is not None:
        x = data.observed.of_cells
    kind = "observed" if data.expected is None else "absent" if x is None else "expected"
    uns: dict[str, Any] = {"X": kind, "virchow_st": json.dumps(about, ensure_ascii=False)}
    if source.field is not None and "factors" in obsm:
        uns["factor_names"] = np.array(source.field.factor_names, dtype=object)
    if data.errors is not None:
        uns[INTERVAL], of_genes = error_columns(data.errors)
        var |= of_genes
        if x is not None:
            layers["variance"] = cell_variance(data.errors, x, columns)
    return anndata.AnnData(
        X=x,
        obs=pd.DataFrame(obs, index=list(cells.ids)),
        var=pd.DataFrame(var, index=data.panel.labels),
        layers=layers,
        obsm=obsm,
        varm=varm,
        uns=uns,
    )  # fmt: skip


def cell_columns(source: CellSource, data: CellData) -> dict[str, Any]:
    """(n,) numbers of every cell by the name of their column in ``obs``; docs/cells.md has them."""
    cells, lattice = data.cells, data.cells.lattice
    xy_um, xy_px = lattice.to_um(cells.centroids), lattice.to_px(cells.centroids)
    found: dict[str, Any] = {
        "area_um2": cells.area_um2,
        "bins": cells.n_bins,
        "x_um": xy_um[:, 0],
        "y_um": xy_um[:, 1],
        "x_px": xy_px[:, 0],
        "y_px": xy_px[:, 1],
        "tissue": cells.mean_of(lattice.tissue),
        "covered": cells.mean_of(source.covered),
    }
    if source.field is not None and source.field.layers.failed is not None:
        found[FILLED] = cells.mean_of(source.field.failed)
    if data.observed is not None:
        found["counted"] = data.counted
        found["umis"] = np.asarray(data.observed.of_cells.sum(axis=1, dtype=np.float64)).ravel()
    if data.expected is not None:
        sums, weights = data.expected.of_cells, data.loadings
        found["expected_umis"] = sums.sum(axis=1) if weights is None else sums @ weights.sum(axis=0)
    return found


def provenance_of(
    source: CellSource, path: Path, config: CellsConfig, data: CellData
) -> dict[str, Any]:
    """What the table was made from, for JSON."""
    cells = data.cells
    about: dict[str, Any] = {
        "format": FORMAT,
        **source.about,
        "patient": source.patient,
        "slide": source.name,
        "homography": cells.lattice.homography.matrix.tolist(),
        "frame": "µm from the outer corner of bin (0, 0), x along array_col, y along array_row",
        "cells": str(path) if config.keep_paths else path.resolve().name,
        "n_cells": len(cells),
        "left_out_cells": cells.n_elsewhere,
        "shared_bins": cells.n_shared,
        "passed_over": cells.notes or {},
        "options": {k: v for k, v in asdict(config).items() if k not in ("slide", "keep_paths")},
        "software": versions(_SOFTWARE),
    }
    if data.segmenter:
        about["segmenter"] = data.segmenter
    if data.observed is not None:
        within = float(data.observed.of_cells.sum(dtype=np.float64))
        about["observed_umis"] = {"cells": within, "outside": data.observed.of_slide - within}
    if data.expected is not None:
        weights = 1 if data.loadings is None else data.loadings.sum(axis=0, dtype=np.float64)
        within = float((data.expected.of_cells.sum(axis=0) * weights).sum())
        total = float((data.expected.of_slide * weights).sum())
        about["expected_umis"] = {"cells": within, "outside": total - within}
    return about

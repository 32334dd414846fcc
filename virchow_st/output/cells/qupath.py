"""Cells as GeoJSON for QuPath: outlines in full-resolution pixels, with measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from virchow_st.config import CellsConfig
from virchow_st.errors import ConfigError
from virchow_st.output.cells.errors import FILLED, cell_bounds
from virchow_st.output.cells.gather import CellData
from virchow_st.output.cells.sources import CellSource
from virchow_st.output.cells.table import cell_columns
from virchow_st.slide.cells.cell_map import bin_outlines
from virchow_st.store.genes import split_names
from virchow_st.types import Array, Float64Array

MOST_GENES = 100
"""Genes that may be measurements of every cell: QuPath holds all of them in memory."""
_DECIMALS = 6  # of coordinates, px: with 4, one bin of a million changed its cell
_AT_ONCE = 10_000  # cells


def check_genes(config: CellsConfig) -> None:
    """Raise `ConfigError` where more genes are asked for than `MOST_GENES`."""
    if (n := len(split_names(config.genes)) if config.genes else 0) > MOST_GENES:
        raise ConfigError(
            f"genes: expected at most {MOST_GENES} for a .geojson, whose cells carry one "
            f"measurement per gene; got {n:,}; name fewer, or write .h5ad or .zarr"
        )


def write_outlines(
    source: CellSource, data: CellData, config: CellsConfig, about: dict[str, Any], path: Path
) -> list[str]:
    """Write a ``FeatureCollection``, one feature per line, in the order of the cells.

    Every feature has QuPath's properties: ``objectType`` (``cell``, or ``detection`` of nuclei),
    ``name``, ``classification`` where the cell has a class, and ``measurements``. Coordinates are
    full-resolution px ``(x, y)``, corner-based, rounded to 1e-6 px. Cells that were given as
    bins, or expanded, have the outline of their bins. The format is what QuPath 0.4 and later write
    (https://qupath.readthedocs.io, "Exporting annotations").

    Args:
        source, data: what was read and summed.
        config: options; the genes that it names become measurements.
        about: provenance, a member ``virchow_st`` of the collection.
        path: file to write.

    Returns:
        Names of the measurements.
    """
    cells = data.cells
    values = _measurements(source, data, bool(config.genes))
    kind = "detection" if config.nuclei else "cell"
    shapes = bin_outlines(cells) if cells.outlines is None else cells.outlines
    with open(path, "w", encoding="ascii", newline="\n") as file:
        file.write(f'{{"type":"FeatureCollection","virchow_st":{json.dumps(about)},"features":[')
        for first in range(0, len(cells), _AT_ONCE):
            of = slice(first, first + _AT_ONCE)
            in_px = shapely.transform(
                shapes[of], lambda xy: np.round(cells.lattice.to_px(xy), _DECIMALS)
            )
            rows = np.stack([column[of] for column in values.values()], axis=1)
            for i, (geometry, row) in enumerate(zip(shapely.to_geojson(in_px), rows, strict=True)):
                name, label = cells.ids[first + i], cells.classes[first + i]
                properties: dict[str, Any] = {"objectType": kind, "name": name}
                if label:
                    properties["classification"] = _classification(label)
                properties["measurements"] = {
                    key: float(f"{value:.9g}")
                    for key, value in zip(values, row, strict=True)
                    if value == value  # bounds that are not known are NaN, which JSON has not
                }
                file.write("," if first + i else "")
                file.write(
                    f'\n{{"type":"Feature","id":{json.dumps(name)},"geometry":{geometry},'
                    f'"properties":{json.dumps(properties, allow_nan=False)}}}'
                )
        file.write("\n]}\n")
    return list(values)


def _classification(label: str) -> dict[str, Any]:
    """A class as QuPath writes it; ``A: B`` is B within A.

    >>> _classification("Tumor"), _classification("Tumor: Ki67+")
    ({'name': 'Tumor'}, {'names': ['Tumor', 'Ki67+']})
    """
    parts = label.split(": ")
    return {"names": parts} if len(parts) > 1 else {"name": label}


def _measurements(source: CellSource, data: CellData, by_gene: bool) -> dict[str, Float64Array]:
    """(n,) values by name: totals, area, share with values, and the genes where they were named."""
    columns = cell_columns(source, data)
    among = f" of {len(data.panel)} genes" if by_gene else ""
    found = {}
    if data.expected is not None:
        found[f"Expected UMIs{among}"] = columns["expected_umis"]
    if data.observed is not None:
        found[f"Observed UMIs{among}"] = columns["umis"]
    found["Area µm^2"] = columns["area_um2"]
    found["Covered share"] = columns["covered"]
    if FILLED in columns:
        found["Filled share"] = columns[FILLED]
    if by_gene:
        for g, label in enumerate(data.panel.labels):
            if data.expected is not None:
                rates = _expected(data, g).astype(np.float32)
                found[f"{label}: expected UMIs"] = rates
                if data.errors is not None:
                    of_gene = data.errors.of_genes(np.array([g]))
                    low, high = cell_bounds(of_gene, rates[:, None], columns)
                    found[f"{label}: lower bound"], found[f"{label}: upper bound"] = low, high
            if data.observed is not None and data.measured is not None and data.measured[g]:
                found[f"{label}: observed UMIs"] = data.observed.of_cells[:, [g]].toarray()
    return {name: np.asarray(of, np.float64).ravel() for name, of in found.items()}


def _expected(data: CellData, g: int) -> Array:
    assert data.expected is not None
    sums = data.expected.of_cells
    return sums[:, g] if data.loadings is None else sums @ data.loadings[g]

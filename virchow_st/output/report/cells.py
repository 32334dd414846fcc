"""The section of cells: where the cells of the test slide lie, their factors, and their counts.

Elements are named ``cell-WHAT``, and by gene ``cell-predicted-GENE`` and ``cell-observed-GENE``,
with the gene's index in the page's list; ``cells`` describes them, and `page/cells.js` reads them.

Letters: n cells, K factors, M runs of bins of one cell in a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from virchow_st.errors import ConfigError
from virchow_st.output.fields import cell_factors, slide_field
from virchow_st.output.figures.cells import cell_values
from virchow_st.output.figures.rasters import UNIT_BINS
from virchow_st.output.report.codes import (
    code_factor,
    pack_numbers,
    pack_signed,
    pack_steps,
    pack_text,
)
from virchow_st.output.report.layers import colour_stops
from virchow_st.output.report.markup import Markup, data_script, escaped, json_script
from virchow_st.run.evaluated import RunResults
from virchow_st.run.maps import SlideResult, open_maps
from virchow_st.run.panel import Gene
from virchow_st.runtime.progress import Progress
from virchow_st.types import Array

if TYPE_CHECKING:
    from virchow_st.slide.cells.cell_map import CellMap

Write = Callable[[str], object]


def cells_section(cells: CellMap, source: Path, results: RunResults) -> Markup:
    """The section before its data: the controls and the frame of the picture."""
    texts = {
        "n_cells": f"{len(cells):,}",
        "slide": escaped(cells.lattice.name),
        "source": escaped(source.resolve().name),
        "area": f"{float(np.median(cells.area_um2)):.0f}",
        "genes": escaped("any gene" if results.has_factors else "a gene of the panel"),
        "colours": ",".join(colour_stops(24)),
    }
    page = files(__package__) / "page" / "cells.html"
    return Markup(Template(page.read_text("utf-8")).substitute(texts))


def write_cells_data(
    write: Write,
    results: RunResults,
    cells: CellMap,
    genes: Sequence[Gene],
    room: int,
    progress: Progress,
) -> None:
    """Write the cells of a run's only test slide into the page.

    Values are means over a cell's scored bins in UMIs per bin of 2 µm, in 256 steps that are evenly
    spaced in the square root; observed UMIs are exact.

    Args:
        write: writes a piece of the page.
        results: of the run.
        cells: on the bins of the slide.
        genes: of the panel in the order of the page; the last ones are left out where there is no
            room.
        room: largest number of characters of all that the page holds of cells.
        progress: receives notes, warnings and step counts.

    Raises:
        ConfigError: cells and factors take more than ``room``.
        FieldError: the predicted factors are damaged.
    """
    (path,) = results.maps
    with open_maps(path) as slide:
        inside = slide.scored_mask.ravel()[cells.bins]
        n_bins = np.bincount(cells.cell[inside], minlength=len(cells))
        classes = sorted(set(cells.classes))
        number = {name: i for i, name in enumerate(classes)}
        parts = {
            "cell-names": pack_text(list(cells.ids)),
            "cell-class": pack_numbers(np.array([number[name] for name in cells.classes])),
            "cell-bins": pack_numbers(n_bins),
            "cell-area": pack_numbers(np.rint(cells.area_um2)),
            **_packed_runs(cells),
        }
        tops: list[float] = []
        if results.has_factors:
            field = slide_field(results.path, slide)
            factors, _ = cell_factors(field, cells, slide.scored_mask)
            for k, values in enumerate(factors.T):
                codes, top = code_factor(values.astype(np.float32))
                parts[f"cell-factor-{k}"] = pack_steps(codes)
                tops.append(top)
        taken = sum(map(len, parts.values()))
        if taken > room:
            raise ConfigError(
                f"--cells: expected cells that take at most {room / 1e6:.0f} MB of the report; got "
                f"{len(cells):,} cells, which take {taken / 1e6:.0f} MB; give those of a part of "
                "the slide"
            )
        for name, content in parts.items():
            write(data_script(name, content))
        entries = _write_genes(
            write, slide, cells, n_bins, genes, not results.has_factors, room - taken, progress
        )
    about = {
        "n": len(cells),
        "rows": cells.lattice.shape[0],
        "cols": cells.lattice.shape[1],
        "classes": classes,
        "tops": tops,
        "genes": entries,
    }
    write(json_script("cells", about))


def _packed_runs(cells: CellMap) -> dict[str, str]:
    """Bins of cells as runs side by side in a row: cell, row, first column and length, (M,) each.

    They are sorted by cell, and all but the lengths are differences of each from the one before.
    """
    n_cols = cells.lattice.shape[1]
    order = np.lexsort((cells.bins, cells.cell))
    cell, at = cells.cell[order].astype(np.int64), cells.bins[order]
    row, col = np.divmod(at, n_cols)
    begins = np.ones(len(at), bool)
    begins[1:] = (cell[1:] != cell[:-1]) | (at[1:] != at[:-1] + 1) | (row[1:] != row[:-1])
    first = np.flatnonzero(begins)
    streams = {"cell": cell[first], "row": row[first], "col": col[first]}
    packed = {
        f"cell-run-{name}": pack_signed(np.diff(of, prepend=0)) for name, of in streams.items()
    }
    length = np.diff(np.append(first, len(at)))
    return packed | {"cell-run-length": pack_numbers(length)}


def _write_genes(
    write: Write,
    slide: SlideResult,
    cells: CellMap,
    n_bins: Array,
    genes: Sequence[Gene],
    with_predicted: bool,
    room: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Write observed UMIs, and without factors predicted ones, of genes until there is no room."""
    entries = []
    for g, gene in enumerate(genes):
        progress.step(g, len(genes), "cells", gene.symbol)
        found = cell_values(cells.labels, slide.scored_mask, *slide.layers(gene))
        observed = np.rint(np.nan_to_num(found.observed) * n_bins / UNIT_BINS)
        elements = data_script(f"cell-observed-{g}", pack_numbers(observed))
        entry = {"gene": g, "pcc": _number(found.pcc), "ceiling": _number(found.ceiling)}
        if with_predicted:
            rates = np.maximum(np.nan_to_num(found.predicted), 0) / UNIT_BINS
            codes, entry["top"] = code_factor(rates.astype(np.float32))
            elements += data_script(f"cell-predicted-{g}", pack_steps(codes))
        if len(elements) > room:
            break
        room -= len(elements)
        write(elements)
        entries.append(entry)
    progress.step(len(genes), len(genes), "cells", slide.patient)
    return entries


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)

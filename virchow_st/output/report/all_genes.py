"""The section of all genes: any gene's map from factors and loadings, and the factors themselves.

Elements are named ``factor-SLIDE-FACTOR`` and ``tissue-SLIDE``, slide and factor by their index;
``loadings``, ``all-genes`` and ``all-slides`` are of the whole run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from virchow_st.field.read import Field
from virchow_st.kernels.pooling import pool_mask
from virchow_st.output.fields import slide_field
from virchow_st.output.report.codes import (
    code_factor,
    code_loadings,
    pack_loadings,
    pack_mask,
    pack_steps,
)
from virchow_st.output.report.layers import colour_stops
from virchow_st.output.report.markup import Markup, data_script, escaped, json_script, table
from virchow_st.run.evaluated import RunResults
from virchow_st.run.maps import open_maps
from virchow_st.run.panel import gene_labels
from virchow_st.run.score_table import (
    ABUNDANCE_COLUMNS,
    abundance_caption,
    abundance_rows,
    abundance_title,
)
from virchow_st.runtime.progress import Progress
from virchow_st.types import BIN_UM, CELL_BINS, SCALES_UM, BoolArray, Float32Array

FACTORS_BYTES = 34_000_000
"""Largest number of characters of all factors of all slides in the page."""
SCALES = (BIN_UM * CELL_BINS, SCALES_UM[-1])
"""Bin sides of the maps in µm: the second is taken where the first takes more characters."""
SCORES = ("mean", "pcc", "pcc_ceiling", "pcc_null", "q_value")
"""Columns of ``all_genes.csv`` in the page."""
_DIGITS = 4

Write = Callable[[str], object]


@dataclass(frozen=True, eq=False)
class _SlideFactors:
    """The factors of one slide in its tissue, K × N bins of ``scale_um``."""

    scale_um: int
    mask: BoolArray
    values: Float32Array


def all_genes_section(results: RunResults) -> Markup:
    """The section before its data: the table by abundance, the search and the frames of maps."""
    metrics = results.metrics
    head = ("", *ABUNDANCE_COLUMNS)
    texts = {
        "abundance_title": escaped(abundance_title(metrics)),
        "abundance": table(head, abundance_rows(metrics), numbers=len(ABUNDANCE_COLUMNS)),
        "abundance_caption": escaped(" ".join(abundance_caption(metrics).split())),
        "n_genes": f"{metrics['all_genes']['n_genes']:,}",
        "n_factors": str(metrics["all_genes"]["n_factors"]),
        "colours": ",".join(colour_stops(24)),
    }
    page = files(__package__) / "page" / "all_genes.html"
    return Markup(Template(page.read_text("utf-8")).substitute(texts))


def write_all_genes_data(write: Write, results: RunResults, progress: Progress) -> None:
    """Write genes, scores, loadings and each slide's factors into the page.

    Args:
        write: writes a piece of the page.
        results: of a run with factors.
        progress: receives notes, warnings and step counts.

    Raises:
        ConfigError: a slide has no field, or the fields are not of the run's genes.
        FieldError: a field is damaged.
    """
    slides, loadings = [], None
    for s, path in enumerate(results.maps):
        with open_maps(path) as slide:
            field = slide_field(results.path, slide)
            place = {"name": slide.name, "row0": slide.row0, "col0": slide.col0}
        if loadings is None:
            loadings = field.loadings
            _check_genes(results, field)
        room = FACTORS_BYTES // len(results.maps)
        slides.append(place | _write_slide(write, s, field, room, progress))
    assert loadings is not None
    coded = code_loadings(loadings)
    write(data_script("loadings", pack_loadings(coded)))
    about = {"low": coded.low, "step": coded.step}
    write(json_script("all-genes", _genes(results) | about))
    write(json_script("all-slides", slides))


def _check_genes(results: RunResults, field: Field) -> None:
    ids = tuple(row.gene.id for row in results.all_genes[:: len(SCALES_UM)])
    if field.genes != ids:
        raise results.again("fields", "those of all_genes.csv")


def _genes(results: RunResults) -> dict[str, Any]:
    """Ids, labels and scores of all genes, in the order of the loadings."""
    rows, n = results.all_genes, len(SCALES_UM)
    genes = [row.gene for row in rows[::n]]
    scores = {
        str(scale): {name: [_number(getattr(row, name)) for row in rows[i::n]] for name in SCORES}
        for i, scale in enumerate(SCALES_UM)
    }
    return {
        "ids": [gene.id for gene in genes],
        "labels": list(gene_labels(genes).values()),
        "scores": scores,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.{_DIGITS}g}")


def _write_slide(
    write: Write, s: int, field: Field, room: int, progress: Progress
) -> dict[str, Any]:
    """Write one slide's factors at 8 µm, or at 16 µm where they need more than ``room``."""
    for scale_um in SCALES:
        factors = _read(field, scale_um)
        coded = [code_factor(values) for values in factors.values]
        packed = [pack_steps(codes) for codes, _ in coded]
        if sum(map(len, packed)) <= room:
            break
    for k, content in enumerate(packed):
        progress.step(k + 1, len(packed), "factors", field.path.stem)
        write(data_script(f"factor-{s}-{k}", content))
    write(data_script(f"tissue-{s}", pack_mask(factors.mask)))
    n_fine = (factors.scale_um // BIN_UM) ** 2
    n_bins = max(int(factors.mask.sum()), 1)
    return {
        "scaleUm": factors.scale_um,
        "rows": factors.mask.shape[0],
        "cols": factors.mask.shape[1],
        "tops": [top for _, top in coded],
        "umis": [float(v.sum(dtype=np.float64)) / n_bins / n_fine for v in factors.values],
        "leading": field.leading_genes,
    }


def _read(field: Field, scale_um: int) -> _SlideFactors:
    """Factors in bins of which every 2 µm bin is tissue and predicted, as scores have them."""
    factor = scale_um // BIN_UM
    rows, cols = (n // factor for n in field.shape)
    known = (field.tissue_mask & field.covered)[: rows * factor, : cols * factor]
    mask = pool_mask(known, factor)
    return _SlideFactors(scale_um, mask, field.factors(scale_um=scale_um)[:, mask])

"""The report of an evaluated run: one self-contained HTML page with scores, figures and maps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from virchow_st.output.figures.cells import read_run_cells
from virchow_st.output.figures.choice import chosen_genes, strongest_first
from virchow_st.output.figures.draw import draw_into
from virchow_st.output.report import sections
from virchow_st.output.report.content import gene_table_data
from virchow_st.output.report.layers import colour_stops
from virchow_st.output.report.markup import Markup, escaped, json_script
from virchow_st.output.report.pictures import find_pictures, load_pictures
from virchow_st.output.report.provenance import run_section
from virchow_st.output.report.slides import FINE_GENES, write_slides
from virchow_st.run.evaluated import RunResults, read_results
from virchow_st.run.lock import FIGURES, RunLock
from virchow_st.run.maps import open_maps
from virchow_st.runtime.atomic import written_whole
from virchow_st.runtime.progress import SILENT, Progress

if TYPE_CHECKING:
    from virchow_st.slide.cells.cell_map import CellMap

__all__ = ["write_report"]

FIGURES_BYTES = 12_000_000
"""Most characters of all figures in the page."""
ALL_GENES_BYTES = 40_000_000
"""Characters for all genes of a run with factors, by which there are fewer maps of the panel."""
CELLS_BYTES = 30_000_000
"""Characters for cells, by which there are fewer maps of the panel too."""
_SCRIPTS = ("genes.js", "slide.js", "reading.js", "controls.js")  # joined in this order
_ALL_GENES_LINK = ' <a href="#all-genes-section">All genes</a>'
_CELLS_LINK = ' <a href="#cells-section">Cells</a>'
_STALE_S = 60.0  # copying a folder may change the order of its files' dates by seconds


def write_report(
    run: Path,
    genes: Sequence[str] | None = None,
    progress: Progress = SILENT,
    keep_paths: bool = False,
    cells: Path | None = None,
) -> Path:
    """Write ``run/report.html`` and return its path.

    The page contains the run's figures, which are drawn first if there are none, and maps of the
    test slides: every gene of the panel at 8 and 16 µm, and the strongest genes also at 2 and 4 µm.
    Of a run with factors it also has these, with the loadings of every gene, and so every gene's
    predicted map. With cells, these are shown over the H&E, coloured by a gene or a factor. The
    page stays under 150 MB and lists what was left out.

    Args:
        run: a run directory that ``vst evaluate`` has scored.
        genes: symbols or ids of the panel; these alone are shown on the slide, at every scale.
        progress: receives notes, warnings and step counts.
        keep_paths: show where the stores lie, not only what they are called.
        cells: cells of the test slide, such as Space Ranger's outs or a GeoJSON (docs/cells.md).

    Raises:
        SlideError: ``cells`` holds none, or those of another slide.
        ConfigError: a result file is missing or damaged, or a gene is not in the panel.
        FieldError: the predicted factors of a slide are damaged.
    """
    with RunLock() as lock:
        lock.take(run)
        return _write(run, genes, progress, keep_paths, cells)


def _write(
    run: Path,
    genes: Sequence[str] | None,
    progress: Progress,
    keep_paths: bool,
    cells: Path | None,
) -> Path:
    results = read_results(run)
    _ = results.config  # and the split, checked before anything is drawn
    order = strongest_first(results)
    shown, n_fine = order, FINE_GENES
    if genes is not None:
        shown = chosen_genes(results, genes)
        n_fine = len(shown)
        order = shown + [gene for gene in order if gene not in shown]

    of_cells = None if cells is None else _read_cells(results, cells)
    if not (pictures := find_pictures(run / FIGURES)):
        progress.note("the run has no figures yet; drawing them")
        draw_into(run, genes, None, progress, cells)
        pictures = find_pictures(run / FIGURES)
    is_stale = any(
        p.stat().st_mtime + _STALE_S < (run / "metrics.json").stat().st_mtime for p in pictures
    )
    if is_stale:
        progress.warn(f"{run / 'figures'}: older than metrics.json; run `vst figures {run}` first")
    embedded, left_out = load_pictures(pictures, FIGURES_BYTES)

    path = run / "report.html"
    with written_whole(path) as aside, open(aside, "w", encoding="utf-8") as page:
        figures = sections.figures_section(embedded, left_out, is_stale)
        section = Markup("")
        if of_cells is not None and cells is not None:
            from virchow_st.output.report.cells import cells_section  # loads zarr

            section = cells_section(of_cells, cells, results)
        head, tail = _page(results, figures, section, keep_paths)
        page.write(head)
        page.write(json_script("gene-data", gene_table_data(results, order)))
        reserved = results.has_factors * ALL_GENES_BYTES + (of_cells is not None) * CELLS_BYTES
        slides = write_slides(page.write, results.maps, shown, n_fine, progress, reserved)
        page.write(json_script("slide-data", slides))
        if results.has_factors:
            from virchow_st.output.report.all_genes import write_all_genes_data  # loads zarr

            write_all_genes_data(page.write, results, progress)
        if of_cells is not None:
            from virchow_st.output.report.cells import write_cells_data  # loads zarr

            write_cells_data(page.write, results, of_cells, order, CELLS_BYTES, progress)
        if of_cells is not None or results.has_factors:
            page.write(json_script("palette", colour_stops()))
        page.write(tail)
    return path


def _read_cells(results: RunResults, cells: Path) -> CellMap:
    with ExitStack() as stack:
        return read_run_cells(cells, [stack.enter_context(open_maps(p)) for p in results.maps])


def _page(results: RunResults, figures: Markup, cells: Markup, keep_paths: bool) -> tuple[str, str]:
    """The page before and after the data that its scripts read."""
    scripts: tuple[str, ...] = _SCRIPTS
    style = _asset("page", "page.css")
    section, link = Markup(""), ""
    if results.has_factors:
        from virchow_st.output.report.all_genes import all_genes_section  # loads zarr

        section, link = all_genes_section(results), _ALL_GENES_LINK
        style += _asset("page", "all_genes.css")
    if cells:
        style += _asset("page", "cells.css")
    if cells or results.has_factors:
        scripts = (*scripts, "packed.js")
        scripts += ("all_genes.js",) * results.has_factors + ("cells.js",) * bool(cells)
    texts = {
        "name": escaped(results.name),
        "lead": sections.lead(results),
        "licence": sections.licence_note(results),
        "overview": sections.overview(results.metrics),
        "warnings": sections.warnings(results),
        "scores": sections.score_table(results),
        "gene_head": sections.gene_table_head(),
        "figures": figures,
        "run": run_section(results, keep_paths),
        "colours": ",".join(colour_stops(24)),
        "viewer_licence": escaped(_asset("vendor", "openseadragon.LICENSE.txt")),
        "all_genes": section,
        "all_genes_link": link,
        "cells": cells,
        "cells_link": _CELLS_LINK if cells else "",
        "style": style,
        "viewer": _asset("vendor", "openseadragon.min.js"),
        "scripts": "\n".join(_asset("page", name) for name in scripts),
    }
    head, tail = (
        Template(part).substitute(texts) for part in _asset("page", "page.html").split("$data\n")
    )
    return head, tail


def _asset(folder: str, name: str) -> str:
    return (files(__name__) / folder / name).read_text("utf-8")

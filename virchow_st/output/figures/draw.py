"""``vst figures``: every figure of a run, in a fixed order and under fixed names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virchow_st.errors import ConfigError
from virchow_st.names import file_names
from virchow_st.output.figures.abundance import abundance_figure
from virchow_st.output.figures.against import Side, against_figure
from virchow_st.output.figures.calibration import SCALES as CALIBRATION_SCALES
from virchow_st.output.figures.calibration import calibration_figure
from virchow_st.output.figures.cells import cells_figure, read_run_cells
from virchow_st.output.figures.choice import chosen_genes, strongest_genes
from virchow_st.output.figures.close_ups import patches_figures, strong_patches
from virchow_st.output.figures.curves import curves_figure
from virchow_st.output.figures.genes import MOST_BARS, genes_figure, sparsity_figure
from virchow_st.output.figures.genes import SCALES as BAR_SCALES
from virchow_st.output.figures.mosaic import MOST, mosaic_figure
from virchow_st.output.figures.multiscale import multiscale_figure
from virchow_st.output.figures.numbers import NumbersFile
from virchow_st.output.figures.overview import overview_figure
from virchow_st.output.figures.rasters import strongest
from virchow_st.output.figures.reliability import Cells, Curve, Reliability
from virchow_st.output.figures.run import OtherRun
from virchow_st.output.figures.style import Picture, save
from virchow_st.run.all_genes import NULL_SCALES_UM
from virchow_st.run.evaluated import RunResults, read_results
from virchow_st.run.lock import FIGURES, FIGURES_SEAL, RunLock
from virchow_st.run.maps import SlideResult, open_maps
from virchow_st.run.overview import SlideOverview, read_overviews
from virchow_st.run.panel import Gene, gene_labels
from virchow_st.run.results import GeneScore
from virchow_st.runtime.atomic import replaced_together
from virchow_st.runtime.progress import SILENT, Progress

if TYPE_CHECKING:
    from virchow_st.run.blocks import RunBlocks
    from virchow_st.slide.cells.cell_map import CellMap

MOST_GENES = 200
"""Largest number of genes pooled for calibration; more genes would not change the curve."""


def draw_figures(
    run: Path,
    genes: Sequence[str] | None = None,
    against: Path | None = None,
    progress: Progress = SILENT,
    cells: Path | None = None,
) -> list[Path]:
    """Draw an evaluated run into ``run/figures`` as PNG (300 dpi) and PDF, and return the paths.

    docs/figures.md explains each figure:

    - ``multiscale_SLIDE_GENE``, ``mosaic_SLIDE_GENE``: one per test slide and gene
    - ``patches_SLIDE``: one per test slide; further pages are ``patches_SLIDE_2``, …
    - ``cells_SLIDE_GENE``: one per gene, if cells are given
    - ``genes``, ``sparsity``, ``calibration``, ``training_curves``
    - ``overview_SLIDE``: one per slide of the run
    - ``cell_factors_SLIDE``: of a run with factors, if cells are given
    - ``abundance``, and ``factors_SLIDE``, one per test slide: of a run with factors
    - ``against``: if another run is given

    ``visualization_metrics.json`` in the same folder holds every number printed in a figure.
    The files appear together when all figures are drawn; until then, earlier ones stay.

    Args:
        run: a run directory.
        genes: symbols or ids of the panel; the three whose PCC × mean at 8 µm is largest if None.
        against: another evaluated run of the same panel and test patches.
        progress: receives notes, warnings and step counts.
        cells: cells of the test slide, such as Space Ranger's outs or a GeoJSON (docs/cells.md).

    Raises:
        SlideError: ``cells`` holds none, or those of another slide.
        ConfigError: a gene that is unknown, a symbol that two ids share, a result file that is
            missing or damaged, or a run that cannot be compared.
    """
    with RunLock() as lock:
        lock.take(run)
        return draw_into(run, genes, against, progress, cells)


def draw_into(
    run: Path,
    genes: Sequence[str] | None,
    against: Path | None,
    progress: Progress,
    cells: Path | None = None,
) -> list[Path]:
    """`draw_figures`, for a caller that has locked the run."""
    results = read_results(run)
    _ = results.blocks  # read and checked before anything is drawn
    chosen = strongest_genes(results) if genes is None else chosen_genes(results, genes)
    other = None if against is None else OtherRun.read(results, against)
    with ExitStack() as stack:
        slides = [stack.enter_context(open_maps(path)) for path in results.maps]
        of_cells = None if cells is None else read_run_cells(cells, slides)
        overviews = list(read_overviews(run))
        total = len(slides) * (1 + 2 * len(chosen)) + 4 + len(overviews) + (other is not None)
        total += results.has_factors * (1 + len(slides))
        total += (of_cells is not None) * (len(chosen) + results.has_factors)
        written: list[Path] = []
        numbers = NumbersFile(run / FIGURES / FIGURES_SEAL, run)
        drawn = pictures(results, chosen, slides, overviews, other, of_cells)
        # All or none: a report embeds the figures that it finds, and must not find some of them.
        with replaced_together(run / FIGURES, FIGURES_SEAL) as folder:
            for n, (name, pages) in enumerate(drawn, start=1):
                for page, picture in enumerate(pages, start=1):
                    file = name if page == 1 else f"{name}_{page}"
                    written += save(picture.figure, folder / file)
                    numbers.add(file, picture.numbers)
                progress.step(n, total, "pictures", name)
            numbers.write(folder / FIGURES_SEAL)
    return [run / FIGURES / path.name for path in written]


def pictures(
    results: RunResults,
    chosen: Sequence[Gene],
    slides: Sequence[SlideResult],
    overviews: Sequence[SlideOverview],
    other: OtherRun | None,
    cells: CellMap | None = None,
) -> Iterator[tuple[str, list[Picture]]]:
    """Name and pages of each figure, in their order."""
    names, by_gene = results.labels, results.by_gene
    files = dict(zip(names, file_names(list(names.values())), strict=True))
    for slide in slides:
        for gene in chosen:
            rate, counts = slide.layers(gene)
            label = names[gene.id]
            picture = multiscale_figure(slide, rate, counts, label, by_gene[gene.id])
            yield f"multiscale_{slide.file_name}_{files[gene.id]}", [picture]
            places = strongest(slide.patches, counts, MOST)
            pages = [mosaic_figure(slide, rate, counts, label, places)] if places else []
            yield f"mosaic_{slide.file_name}_{files[gene.id]}", pages
        patches = strong_patches(slide, [(gene, names[gene.id]) for gene in chosen])
        yield f"patches_{slide.file_name}", patches_figures(slide, patches)
        if cells is not None:
            for gene in chosen:
                picture = cells_figure(slide, cells, *slide.layers(gene), names[gene.id])
                yield f"cells_{slide.file_name}_{files[gene.id]}", [picture]
    genes, called = list(by_gene.values()), list(names.values())
    shown = sorted(range(len(genes)), key=lambda i: -genes[i][2].mean)[:MOST_BARS]
    bars = [genes[i] for i in shown]
    intervals = _intervals(results.blocks, [gene[2].gene.id for gene in bars])
    yield "genes", [genes_figure(bars, [called[i] for i in shown], intervals, len(genes))]
    ids = [gene.id for gene in chosen]
    yield "sparsity", [sparsity_figure(genes, called, ids)]
    pooled = _spread(by_gene, MOST_GENES)
    curves = _curves(slides, pooled)
    yield "calibration", [calibration_figure(curves, len(pooled), genes, called, ids)]
    yield "training_curves", [curves_figure(results.history, results.metrics)]
    for overview in overviews:
        yield f"overview_{overview.file_name}", [overview_figure(overview)]
    if results.has_factors:
        yield "abundance", [_abundance(results)]
        for slide in slides:
            yield f"factors_{slide.file_name}", [_factors(results.path, slide)]
        if cells is not None:
            (slide,) = slides
            yield f"cell_factors_{slide.file_name}", [_factors(results.path, slide, cells)]
    if other is not None:
        yield "against", [_against(results, other, chosen[0], slides[0], pooled, curves)]


def _abundance(results: RunResults) -> Picture:
    rows = results.all_genes
    labels = gene_labels([row.gene for row in rows if row.scale_um == NULL_SCALES_UM[0]])
    fdr = results.metrics["all_genes"]["fdr"]
    return abundance_figure(rows, list(labels.values()), fdr, NULL_SCALES_UM[0])


def _factors(run: Path, slide: SlideResult, cells: CellMap | None = None) -> Picture:
    from virchow_st.output.fields import slide_field  # these load zarr and numba
    from virchow_st.output.figures.factors import cell_factors_figure, factors_figure

    field = slide_field(run, slide)
    if cells is not None:
        return cell_factors_figure(field, cells, slide.heading)
    return factors_figure(field, slide.heading)


def _intervals(blocks: RunBlocks, ids: Sequence[str]) -> dict[tuple[str, int], tuple[float, float]]:
    """95 % interval of each gene's PCC, by id and scale; empty if there is a single block."""
    from virchow_st.metrics import BlockSums, interval
    from virchow_st.run.blocks import RUN

    found = {}
    for gene in ids:
        g = blocks.gene_ids.index(gene)
        for scale in BAR_SCALES:
            sums = blocks.sums[RUN][scale]
            one = BlockSums(
                sums.moments[:, g : g + 1], sums.poisson_sums[:, g : g + 1],
                sums.null_rate[g : g + 1],
            )  # fmt: skip
            low, high = interval(one, "pcc")
            if not math.isnan(low):
                found[gene, scale] = low, high
    return found


def _curves(slides: Sequence[SlideResult], genes: Sequence[Gene]) -> dict[int, Curve]:
    """Calibration at each scale, pooled over genes and slides; one gene in memory at a time."""
    n_blocks = 1 + max(int(slide.blocks.max()) for slide in slides)
    sums = {scale: Reliability(scale, n_blocks) for scale in CALIBRATION_SCALES}
    for slide in slides:
        cells = {scale: Cells(slide, scale) for scale in sums}
        for gene in genes:
            rate, counts = slide.layers(gene)
            for scale, reliability in sums.items():
                reliability.add(cells[scale], rate, counts)
    return {scale: reliability.curve() for scale, reliability in sums.items()}


def _spread(by_gene: Mapping[str, Mapping[int, GeneScore]], most: int) -> list[Gene]:
    """All genes, or ``most`` of them, evenly spaced from the most to the least abundant."""
    genes = sorted((gene[2] for gene in by_gene.values()), key=lambda score: -score.mean)
    if len(genes) > most:
        genes = [genes[i * (len(genes) - 1) // (most - 1)] for i in range(most)]
    return [score.gene for score in genes]


def _against(
    results: RunResults,
    other: OtherRun,
    gene: Gene,
    slide: SlideResult,
    pooled: Sequence[Gene],
    curves: Mapping[int, Curve],
) -> Picture:
    rate, counts = slide.layers(gene)
    with ExitStack() as stack:
        paths = other.results.maps
        theirs = [stack.enter_context(open_maps(path)) for path in paths]
        same = {their.name: their for their in theirs}.get(slide.name)
        if same is None or same.scored_mask.shape != slide.scored_mask.shape:
            raise ConfigError(
                f"{other.results.path / 'maps'}: expected {slide.file_name}.h5 of the slide that "
                f"{slide.path} is of; got {', '.join(path.name for path in paths)}; train both "
                f"with their stores in one order"
            )
        their_curves = _curves(theirs, pooled)
        their_rate = same.layers(gene)[0]
    names = _run_names(results.path, other.results.path)
    sides = (
        Side(names[0], _detail(results.metrics), list(results.by_gene.values()), curves, rate),
        Side(
            names[1], _detail(other.results.metrics), list(other.results.by_gene.values()),
            their_curves, their_rate,
        ),
    )  # fmt: skip
    called = list(results.labels.values())
    shown = results.panel.index(gene)
    return against_figure(sides, called, other.differences, slide, counts, shown)


def _run_names(a: Path, b: Path) -> tuple[str, str]:
    """Names of the folders, or their whole paths if the names are equal."""
    names = a.resolve().name, b.resolve().name
    return names if names[0] != names[1] else (str(a), str(b))


def _detail(metrics: Mapping[str, Any]) -> str:
    return f"decoder {metrics['decoder']}, loss {metrics['loss']}, epoch {metrics['epoch']}"

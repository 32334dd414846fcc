"""Pictures of a run, from its result files only: no store, slide, model or GPU is needed."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from virchow_st.errors import ConfigError
from virchow_st.figures.curves import curves_figure
from virchow_st.figures.multiscale import multiscale_figure
from virchow_st.figures.results import (
    Gene,
    GeneScore,
    find_maps,
    open_maps,
    read_history,
    read_metrics,
    read_scores,
)
from virchow_st.figures.style import save

__all__ = ["draw_figures"]

DEFAULT_GENES = 3
RANKING_SCALE_UM = 8


def draw_figures(run: Path, genes: Sequence[str] | None = None) -> list[Path]:
    """Draw an evaluated run into ``run/figures`` as PNG (300 dpi) and PDF; return the paths.

    - ``multiscale_<patient>_<symbol>``: per test slide and gene, H&E beside prediction and
      observation at 8, 4 and 2 µm
    - ``training_curves``: loss, validation PCC and scale weights by epoch

    ``genes`` are symbols or ids of the panel. Without them, the three genes whose PCC × mean at
    8 µm is largest are drawn. Raises `ConfigError` for a gene that is unknown or a symbol that
    two ids share, and for a result file that is missing or damaged.
    """
    maps_paths = find_maps(run)
    scores, metrics, history = read_scores(run), read_metrics(run), read_history(run)
    panel = list(dict.fromkeys(score.gene for score in scores))
    chosen = strongest_genes(scores) if genes is None else find_genes(panel, genes)

    written = []
    for path in maps_paths:
        with open_maps(path) as slide:
            for gene in chosen:
                by_scale = {s.scale_um: s for s in scores if s.gene.id == gene.id}
                label = _label(gene, panel)
                figure = multiscale_figure(slide, gene, label, by_scale)
                stem = re.sub(r"[^\w.-]+", "_", f"multiscale_{slide.patient}_{label}").strip("_")
                written += save(figure, run / "figures" / stem)
    written += save(curves_figure(history, metrics), run / "figures" / "training_curves")
    return written


def strongest_genes(scores: Sequence[GeneScore], n: int = DEFAULT_GENES) -> list[Gene]:
    """The ``n`` genes with the largest PCC × mean at 8 µm: both predicted well and visible."""
    products = {
        score.gene: score.pcc * score.mean
        for score in scores
        if score.scale_um == RANKING_SCALE_UM and not math.isnan(score.pcc * score.mean)
    }
    if not products:
        raise ConfigError(
            f"per_gene.csv: no gene has a PCC at {RANKING_SCALE_UM} µm to choose by; name --genes"
        )
    return sorted(products, key=lambda gene: -products[gene])[:n]


def find_genes(panel: Sequence[Gene], wanted: Sequence[str]) -> list[Gene]:
    """The panel's genes by id or symbol, each once, in the order asked for."""
    by_name: dict[str, set[Gene]] = {}
    for gene in panel:
        for name in (gene.id, gene.symbol):
            by_name.setdefault(name, set()).add(gene)
    found = []
    for name in wanted:
        matches = sorted(by_name.get(name, ()), key=lambda gene: gene.id)
        if not matches:
            upper = {known.upper(): known for known in by_name}
            close = [upper[c] for c in difflib.get_close_matches(name.upper(), upper)]
            hint = f"did you mean {', '.join(close)}?" if close else "see the run's panel.tsv"
            raise ConfigError(f"--genes: {name!r} is not in the run's panel; {hint}")
        if len(matches) > 1:
            ids = ", ".join(gene.id for gene in matches)
            raise ConfigError(f"--genes: symbol {name!r} stands for {ids}; give one of these ids")
        found.append(matches[0])
    return list(dict.fromkeys(found))


def _label(gene: Gene, panel: Sequence[Gene]) -> str:
    """The symbol, with the id where another gene of the panel has the same symbol."""
    shared = Counter(g.symbol for g in panel)[gene.symbol] > 1
    return f"{gene.symbol} ({gene.id})" if shared else gene.symbol

"""The genes that are drawn, and their names in figures and files."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Sequence

from virchow_st.errors import ConfigError
from virchow_st.output.figures.results import Gene, GeneScore

DEFAULT_GENES = 3
RANKING_SCALE_UM = 8


def strongest_genes(scores: Sequence[GeneScore], n: int = DEFAULT_GENES) -> list[Gene]:
    """The ``n`` genes with the largest PCC × mean at 8 µm: well predicted and abundant."""
    products = {
        score.gene: score.pcc * score.mean
        for score in scores
        if score.scale_um == RANKING_SCALE_UM and not math.isnan(score.pcc * score.mean)
    }
    if not products:
        raise ConfigError(
            f"per_gene.csv: no gene has a PCC at {RANKING_SCALE_UM} µm to choose by; give --genes"
        )
    return sorted(products, key=lambda gene: -products[gene])[:n]


def find_genes(panel: Sequence[Gene], wanted: Sequence[str]) -> list[Gene]:
    """Find genes of the panel by id or symbol; each once, in the order given."""
    if not wanted:
        raise ConfigError("--genes: expected symbols or ids separated by commas; got none")
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


def labels(panel: Sequence[Gene]) -> dict[str, str]:
    """Name of each gene, by id: its symbol, followed by the id if two symbols look alike.

    Two symbols look alike if they would give the same file name on some file system.
    """
    times = Counter(stem(gene.symbol).lower() for gene in panel)
    return {
        gene.id: f"{gene.symbol} ({gene.id})"
        if times[stem(gene.symbol).lower()] > 1
        else gene.symbol
        for gene in panel
    }


def stem(name: str) -> str:
    """A file name without characters that file systems do not allow.

    >>> stem("HLA-A (ENSG00000206503)")
    'HLA-A_ENSG00000206503'
    """
    return re.sub(r"[^\w.-]+", "_", name).strip("_")

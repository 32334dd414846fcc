"""Which genes are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

from virchow_st.errors import ConfigError
from virchow_st.run.evaluated import RunResults
from virchow_st.run.panel import Gene, find_in

DEFAULT_GENES = 3
RANKING_SCALE_UM = 8


def strongest_first(results: RunResults) -> list[Gene]:
    """The panel by PCC × mean at 8 µm, both predicted well and visible; last what has no PCC."""
    strength = _strength(results)
    return sorted(results.panel, key=lambda gene: -strength.get(gene, -math.inf))


def strongest_genes(results: RunResults, n: int = DEFAULT_GENES) -> list[Gene]:
    """The first ``n`` of `strongest_first` that have a PCC; `ConfigError` where none has."""
    n_defined = len(_strength(results))
    if not n_defined:
        raise ConfigError(
            f"per_gene.csv: no gene has a PCC at {RANKING_SCALE_UM} µm to choose by; give --genes"
        )
    return strongest_first(results)[: min(n, n_defined)]


def chosen_genes(results: RunResults, names: Sequence[str]) -> list[Gene]:
    """The genes that ``--genes`` names, in this order; `ConfigError` where there is none."""
    if not names:
        raise ConfigError("--genes: expected symbols or ids with commas between; got none")
    return find_in(results.panel, names, "--genes: the run's panel")


def _strength(results: RunResults) -> dict[Gene, float]:
    return {
        score.gene: score.pcc * score.mean
        for score in results.scores
        if score.scale_um == RANKING_SCALE_UM and not math.isnan(score.pcc * score.mean)
    }

"""Compares models on the same test bins: score differences, paired by spatial block."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from virchow_st.errors import ConfigError
from virchow_st.metrics.bootstrap import BlockSums, Score, interval, paired
from virchow_st.run.blocks import RUN, RunBlocks, read_blocks
from virchow_st.run.results import INTERVALS, WITH_INTERVAL
from virchow_st.store.genes import same_ids

FORMAT = "virchow_st.comparison/1"
DRAWS = 1000
"""Bootstrap draws of an interval."""


def compare_runs(runs: Sequence[Path]) -> dict[str, Any]:
    """Compare every pair of evaluated runs, in the order given.

    Returns:
        ``{"format", "runs": [paths], "pairs": [{"a", "b", "scales": …}]}``, with the ``scales`` of
        `differences`; positive means that ``a`` is better.

    Raises:
        ConfigError: a run is not evaluated, or two differ in their panel or their test counts.
    """
    blocks = {run: read_blocks(run) for run in runs}
    return {
        "format": FORMAT,
        "runs": [str(run) for run in runs],
        "pairs": [
            {"a": str(a), "b": str(b), "scales": _compare(a, blocks[a], b, blocks[b])}
            for a, b in combinations(runs, 2)
        ],
    }


def _compare(a: Path, of_a: RunBlocks, b: Path, of_b: RunBlocks) -> dict[str, Any]:
    check_same_panel(a, of_a.gene_ids, b, of_b.gene_ids)
    try:
        return differences(of_a.sums[RUN], of_b.sums[RUN])
    except ValueError:
        raise other_patches(a, b) from None


def check_same_panel(a: Path, genes_a: Sequence[str], b: Path, genes_b: Sequence[str]) -> None:
    """Raise `ConfigError` unless both runs predict the same genes in the same order."""
    if not same_ids(genes_a, genes_b):
        raise ConfigError(
            f"{b}: expected the panel of {a}, {len(genes_a)} genes; got another of "
            f"{len(genes_b)}; train both with the same --panel and the same training patients"
        )


def other_patches(a: Path, b: Path) -> ConfigError:
    """The error for two runs that were not tested on the same patches and counts."""
    return ConfigError(
        f"{b}: expected the test patches and counts of {a}; got others; train both with the same "
        f"--test-patient, from stores of the same slides; bins that one of them left out "
        f"(left_out_bins in metrics.json) make a difference too, and so does another --exposure"
    )


def differences(a: Mapping[int, BlockSums], b: Mapping[int, BlockSums]) -> dict[str, Any]:
    """Scores of a minus those of b at each scale, with 95 % intervals.

    Args:
        a, b: sums of two models by scale in µm, over the same blocks.

    Returns:
        ``{"2": {"pcc": {"difference", "ci95", "p"}, "d2_poisson": …}, …}``; null for what is
        undefined, as every interval of a single block.

    Raises:
        ValueError: the two were scored on different bins or counts.
    """
    return {
        str(scale): {figure: _difference(a[scale], b[scale], figure) for figure in INTERVALS}
        for scale in a
    }


def _difference(a: BlockSums, b: BlockSums, score: Score) -> dict[str, Any]:
    actual = paired(a, b, score, DRAWS)
    return {
        "difference": _defined(actual.difference),
        "ci95": _pair(actual.low, actual.high),
        "p": _defined(actual.p),
    }


def intervals(sums: BlockSums, *, of_partial: bool = True) -> dict[str, list[float] | None]:
    """``NAME_ci95`` of one model at one scale for each score that has one.

    None for a single block, and for ``pcc_partial`` without ``of_partial`` or without the sums of
    its controls.
    """
    without = () if of_partial and sums.products is not None else ("pcc_partial",)
    return {
        f"{score}_ci95": None if score in without else _pair(*interval(sums, score, DRAWS))
        for score in WITH_INTERVAL
    }


def _pair(low: float, high: float) -> list[float] | None:
    return None if math.isnan(low) or math.isnan(high) else [low, high]


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)

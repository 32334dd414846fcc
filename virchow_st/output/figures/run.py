"""The result tables of a run, and another run to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virchow_st.errors import ConfigError
from virchow_st.output.figures.choice import labels
from virchow_st.output.figures.results import (
    Epoch,
    Gene,
    GeneScore,
    TestMetrics,
    read_history,
    read_metrics,
    read_scores,
)
from virchow_st.output.figures.slides import find_maps
from virchow_st.types import SCALES_UM

if TYPE_CHECKING:
    from virchow_st.run.results import RunBlocks


@dataclass(frozen=True)
class RunResults:
    """The tables of a run."""

    path: Path
    scores: list[GeneScore]
    metrics: TestMetrics
    history: list[Epoch]
    blocks: RunBlocks

    @cached_property
    def panel(self) -> list[Gene]:
        """The run's genes, in the panel's order."""
        return list(dict.fromkeys(score.gene for score in self.scores))

    @cached_property
    def labels(self) -> dict[str, str]:
        """Name of each gene in the figures, by id."""
        return labels(self.panel)

    @cached_property
    def by_gene(self) -> dict[str, dict[int, GeneScore]]:
        """Scores by gene id and scale, in the panel's order."""
        found: dict[str, dict[int, GeneScore]] = {gene.id: {} for gene in self.panel}
        for score in self.scores:
            found[score.gene.id][score.scale_um] = score
        for gene, scales in found.items():
            if missing := set(SCALES_UM) - set(scales):
                raise ConfigError(
                    f"{self.path / 'per_gene.csv'}: gene {gene} has no line for {min(missing)} µm; "
                    f"run `vst evaluate {self.path}` again"
                )
        return found


def read_run(run: Path) -> RunResults:
    """Read a run's tables; `ConfigError` for what is missing, damaged or does not fit together."""
    from virchow_st.run.results import read_blocks  # loads numba and the store's libraries

    find_maps(run)  # the first thing that a run which was not evaluated lacks
    scores, metrics, history = read_scores(run), read_metrics(run), read_history(run)
    results = RunResults(run, scores, metrics, history, read_blocks(run))
    if missing := [gene for gene in results.by_gene if gene not in results.blocks.gene_ids]:
        raise ConfigError(
            f"{run / 'blocks.npz'}: gene {missing[0]} of per_gene.csv is not in it; "
            f"run `vst evaluate {run}` again"
        )
    return results


@dataclass(frozen=True)
class OtherRun:
    """The run to compare with, and the differences, first minus other."""

    results: RunResults
    differences: dict[str, Any]

    @classmethod
    def read(cls, first: RunResults, path: Path) -> OtherRun:
        """Read the run; `ConfigError` if it is the same run or has other genes or test patches."""
        from virchow_st.run.compare import compare_runs

        if path.resolve() == first.path.resolve():
            raise ConfigError(f"--against: expected another run than {path}; got the same")
        results = read_run(path)
        differences = compare_runs([first.path, path])["pairs"][0]["scales"]
        return cls(results, differences)

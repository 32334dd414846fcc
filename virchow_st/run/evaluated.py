"""Reads the results of an evaluated run; each file is checked against the others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virchow_st.config import TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.run.all_genes import ALL_GENES, AllGenesRow, read_all_genes
from virchow_st.run.history import Epoch, read_history
from virchow_st.run.integrity import CONFIG, SPLIT
from virchow_st.run.maps import find_maps
from virchow_st.run.panel import Gene, gene_labels
from virchow_st.run.results import PER_GENE_FILE, GeneScore, read_metrics, read_per_gene
from virchow_st.run.split import SplitFile, read_split
from virchow_st.run.state import check_run
from virchow_st.settings import from_toml
from virchow_st.types import SCALES_UM

if TYPE_CHECKING:
    from virchow_st.run.blocks import RunBlocks


@dataclass(frozen=True)
class RunResults:
    """Results of an evaluated run, as `read_results` reads them.

    Attributes:
        path: the run directory.
        metrics: content of ``metrics.json``.
        scores: lines of ``per_gene.csv``, in its order.
        history: one for each epoch.
        maps: files of the test slides' maps, in order of their names.
    """

    path: Path
    metrics: dict[str, Any]
    scores: list[GeneScore]
    history: list[Epoch]
    maps: list[Path]

    @property
    def name(self) -> str:
        """Name of the run: that of its folder."""
        return self.path.resolve().name

    @cached_property
    def panel(self) -> list[Gene]:
        """Genes of the run, in the panel's order."""
        return list(self._by_gene)

    @cached_property
    def labels(self) -> dict[str, str]:
        """Unique label of each gene, by id."""
        return gene_labels(self.panel)

    @cached_property
    def _by_gene(self) -> dict[Gene, dict[int, GeneScore]]:
        found: dict[Gene, dict[int, GeneScore]] = {}
        for score in self.scores:
            found.setdefault(score.gene, {})[score.scale_um] = score
        return found

    @property
    def by_gene(self) -> dict[str, dict[int, GeneScore]]:
        """Scores by gene id and scale in µm, in the panel's order."""
        return {gene.id: scores for gene, scores in self._by_gene.items()}

    @cached_property
    def blocks(self) -> RunBlocks:
        """Sums per spatial block; raises `ConfigError` if they are of other genes."""
        from virchow_st.run.blocks import read_blocks  # loads numba

        blocks = read_blocks(self.path)
        if list(blocks.gene_ids) != [gene.id for gene in self.panel]:
            raise self.again("blocks.npz", f"the {len(self.panel)} genes of {PER_GENE_FILE}")
        return blocks

    @property
    def has_factors(self) -> bool:
        """Whether the run predicts every gene, through factors that all genes share."""
        return "all_genes" in self.metrics

    @cached_property
    def all_genes(self) -> list[AllGenesRow]:
        """Rows of ``all_genes.csv`` in file order; only for a run with factors."""
        rows = read_all_genes(self.path)
        if len(rows) != (n := self.metrics["all_genes"]["n_genes"]) * len(SCALES_UM):
            raise self.again(ALL_GENES, f"the {n} genes of metrics.json")
        return rows

    @cached_property
    def config(self) -> TrainConfig:
        """Settings of the training; raises `ConfigError` if its stores are not those of the
        split.
        """
        config = from_toml(TrainConfig, self.path / CONFIG)
        if len(config.stores) != (n_stores := len(self.split["slides"])):
            raise ConfigError(
                f"{self.path / CONFIG}: expected the {n_stores} stores of {SPLIT}; got "
                f"{len(config.stores)}; put the run's own file back"
            )
        return config

    @cached_property
    def split(self) -> SplitFile:
        """Training, validation and test patches."""
        return read_split(self.path / SPLIT)

    def again(self, name: str, expected: str) -> ConfigError:
        """The error for a file that does not match the others."""
        return ConfigError(
            f"{self.path / name}: expected {expected}; got others; run `vst evaluate {self.path}` "
            f"again"
        )


def read_results(run: Path) -> RunResults:
    """Read a run that ``vst evaluate`` has scored.

    Raises:
        ConfigError: a file is missing or damaged, they do not fit together, or configuration, panel
            or split are not those that the run was trained with.
    """
    if not run.is_dir():
        raise ConfigError(f"{run}: no such folder; give the folder that vst train wrote")
    maps = find_maps(run)  # the first thing that a run which was not evaluated lacks
    metrics = read_metrics(run)
    check_run(run)
    results = RunResults(run, metrics, read_per_gene(run), read_history(run), maps)
    if len(results.panel) != metrics["n_genes"]:
        raise results.again(PER_GENE_FILE, f"the {metrics['n_genes']} genes of metrics.json")
    return results

"""What training begins with: factors for the whole transcriptome, and a regression on tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from virchow_st.config import TrainConfig
from virchow_st.models.losses.factor_poisson import FactorStart
from virchow_st.run.split import Member
from virchow_st.run.transcriptome import RunGenes
from virchow_st.runtime.progress import Progress
from virchow_st.training.choose_factors import choose_n_factors
from virchow_st.training.closed_form import TokenRegression, regress_on_tokens
from virchow_st.training.dataset import PatchDataset
from virchow_st.training.factorise import factorise
from virchow_st.training.rows import rows_of
from virchow_st.training.statistics import TrainingStatistics


@dataclass(frozen=True)
class Start:
    """What training begins with.

    Attributes:
        regression: What the decoder begins as; None if it begins at the gene means.
        factors: Factors that the genes' rates are sums of; None if genes are predicted directly.
    """

    regression: TokenRegression | None = None
    factors: FactorStart | None = None

    @staticmethod
    def to_resume(genes: RunGenes, n_factors: int | None) -> Start:
        """Shapes alone, for a run whose checkpoint holds the values."""
        if n_factors is None:
            return NO_START
        shape = len(genes.all), n_factors, len(genes.panel)
        return Start(factors=FactorStart.of_shape(*shape))


NO_START = Start()


def starting_point(
    dataset: PatchDataset,
    members: Sequence[Member],
    statistics: TrainingStatistics,
    genes: RunGenes,
    config: TrainConfig,
    begins_as_regression: bool,
    progress: Progress,
) -> Start:
    """Factorise the training counts if the run predicts every gene, and regress them on tokens.

    Args:
        dataset: Patches of the run, with the counts of all its genes.
        members: Training patches; no others are read.
        statistics: Means and standard deviations of the training patches.
        genes: Genes of the run.
        config: Settings of the run.
        begins_as_regression: Whether the decoder begins as a regression.
        progress: Receives the number of factors.
    """
    factors, loadings = None, None
    if genes.are_factors:
        rows = rows_of(dataset, members, config.seed)
        n_factors = config.factors or choose_n_factors(rows, seed=config.seed).n_factors
        found = factorise(rows, n_factors, config.seed)
        loadings = found.loadings.astype("f4")
        rate_K = (found.factors * rows.exposure[:, None]).sum(0) / rows.exposure.sum()
        factors = FactorStart(
            torch.from_numpy(loadings), torch.from_numpy(rate_K), torch.from_numpy(genes.places)
        )
        progress.note(f"{n_factors} factors, fitted to the training counts at 16 µm")
    regression = None
    if begins_as_regression:
        regression = regress_on_tokens(
            dataset, members, statistics, config.loss, config.seed, loadings
        )
    return Start(regression, factors)

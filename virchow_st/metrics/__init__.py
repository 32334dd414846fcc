"""Scores of predicted rates against observed counts; docs/metrics.md defines each score."""

from virchow_st.metrics.accumulate import ScaleAccumulator
from virchow_st.metrics.bootstrap import BlockSums, PairedDifference, interval, paired
from virchow_st.metrics.discovery import AbundanceGroups, Discovery, by_decile, predicted_genes
from virchow_st.metrics.factor_scores import AllGeneScores, FactorScores
from virchow_st.metrics.scores import ScaleScores

__all__ = [
    "AbundanceGroups",
    "AllGeneScores",
    "BlockSums",
    "Discovery",
    "FactorScores",
    "PairedDifference",
    "ScaleAccumulator",
    "ScaleScores",
    "by_decile",
    "interval",
    "paired",
    "predicted_genes",
]

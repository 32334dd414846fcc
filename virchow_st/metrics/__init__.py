"""Scores of predicted rates against observed counts; docs/metrics.md defines each score."""

from virchow_st.metrics.accumulate import ScaleAccumulator
from virchow_st.metrics.bootstrap import BlockSums, PairedDifference, interval, paired
from virchow_st.metrics.scores import ScaleScores

__all__ = [
    "BlockSums",
    "PairedDifference",
    "ScaleAccumulator",
    "ScaleScores",
    "interval",
    "paired",
]

"""Figures of predicted rates against observed counts; docs/metrics.md defines each."""

from virchow_st.metrics.accumulate import ScaleAccumulator, ScaleScores

__all__ = ["ScaleAccumulator", "ScaleScores"]

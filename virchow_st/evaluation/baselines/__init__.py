"""Baseline models without a decoder, fitted on the training patches.

A useful decoder has to score better than these. docs/metrics.md, "Baselines", defines each.
"""

from virchow_st.evaluation.baselines.fit import (
    ORACLES,
    Baseline,
    Baselines,
    fit_baselines,
    patch_controls,
)

__all__ = ["ORACLES", "Baseline", "Baselines", "fit_baselines", "patch_controls"]
